"""A table to play at, its server in this process, and pages without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from websockets.sync.client import connect
from websockets.typing import Origin

from support.worlds import SPACES, make_actions, make_frames, make_world
from worldvq.evaluation.branches import plans_of
from worldvq.play.messages import unpack
from worldvq.play.rows import Rows
from worldvq.play.security import Limits
from worldvq.play.server import Table, hosts_of, listen, make_server, run
from worldvq.play.starts import Openings, Start


def make_openings(kind: str = "discrete", count: int = 3, context: int = 3) -> Openings:
    """Openings of a world of random weights, on random frames."""
    world = make_world(kind)
    starts = []
    for number in range(count):
        actions = make_actions(kind, 1, context - 1)[0].numpy()
        starts.append(Start(make_frames(1, context)[0].numpy(), actions, number, actions))
    return Openings(world, starts)


def make_table(kind: str = "discrete", limits: Limits | None = None, **more: Any) -> Table:
    """A table with a dream and nothing real."""
    openings = make_openings(kind)
    space = SPACES[kind]
    return Table(
        "Toy-v0", space, openings.world.frame_size, openings, plans_of(space), limits=limits or Limits(), **more
    )


@contextlib.contextmanager
def rows() -> Iterator[Rows]:
    """A thread that computes, while the block runs."""
    made = Rows()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def serving(table: Table, token: str | None = None) -> Iterator[int]:
    """Serve a table while the block runs; yields the port."""
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = make_server(table, hosts_of("127.0.0.1", port), token)
    thread = threading.Thread(target=lambda: asyncio.run(run(server, table, listening)))
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        table.rows.close()


class Page:
    """What a browser would hold."""

    def __init__(self, port: int, **changes: Any):
        settings = {"origin": Origin(f"http://127.0.0.1:{port}"), "compression": None} | changes
        self._stack = contextlib.ExitStack()
        self.socket = self._stack.enter_context(connect(f"ws://127.0.0.1:{port}/play", **settings))

    def __enter__(self) -> Page:
        self.hello, self.thumbnails = self.receive("hello")
        self.first = self.receive("frame")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def receive(self, kind: str) -> tuple[dict[str, Any], bytes]:
        data = self.socket.recv(timeout=60)
        assert isinstance(data, bytes)
        header, rest = unpack(data)
        assert header["kind"] == kind, header
        return header, rest

    def ask(self, answer: str = "frame", **message: Any) -> tuple[dict[str, Any], bytes]:
        """Send a message; returns the answer, which has to be of a kind."""
        self.send(**message)
        return self.receive(answer)


def talk(port: int, request: bytes) -> bytes:
    """Send bytes; returns what comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(2**16):
                parts.append(part)
        return b"".join(parts)


def picture(data: bytes, size: tuple[int, int], index: int = 0) -> np.ndarray:
    """The picture (H, W, 3) at a place of a message."""
    count = size[0] * size[1] * 3
    return np.frombuffer(data, np.uint8, count, index * count).reshape(*size, 3)
