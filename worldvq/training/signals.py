"""What SIGTERM and SIGUSR1 do: schedulers send them some time before they kill.

Imports no torch, so that the command line can listen before the seconds that takes.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from worldvq.errors import StoppedError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class _Handlers:
    """Handles the signals while a ``with`` block runs, and remembers the first; only the main thread can."""

    def __init__(self) -> None:
        self.signum = 0
        """The signal that came, or 0."""
        self._before: dict[int, Any] = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # Often it comes more than once: to the process group, and passed on by the launcher.
        self.signum = self.signum or signum

    def __enter__(self) -> Any:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


class StopAtOnce(_Handlers):
    """Raises StoppedError where the signal finds the program, so that what cleans up does: for stages that resume.

    Args:
        ends_program: Nothing comes after the block but the end of the program: a signal that finds it there, when all
            is done and said, no longer changes how it ends.
    """

    def __init__(self, ends_program: bool = False) -> None:
        super().__init__()
        self._ends_program = ends_program

    def __enter__(self) -> Any:
        super().__enter__()
        if self._ends_program:
            self._before = dict.fromkeys(self._before, _ignore)
        return self

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum = signum
            raise StoppedError(signum)


def _ignore(signum: int, frame: FrameType | None) -> None:
    """A handler, as programs that are started inherit SIG_IGN."""


class StopWhenSaved(_Handlers):
    """Only remembers the signal in ``signum``: a training loop looks at it after each step.

    One that comes after the last look ends the program at the end of the block.
    """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self.signum and kind is None:
            raise StoppedError(self.signum)
