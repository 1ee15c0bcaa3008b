"""Imported by the zygote's fork server: a child that is killed while it asks for a process must not end the server.

CPython's server ends with an EOFError then. A recorder's own server would end with the recorder anyway.
"""

import errno
from multiprocessing import reduction

_receive = reduction.recvfds


def receive(*arguments):
    try:
        return _receive(*arguments)
    except (EOFError, RuntimeError) as error:
        raise OSError(errno.ECONNABORTED, str(error)) from error


reduction.recvfds = receive
