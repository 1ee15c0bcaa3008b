"""The page's server: static files from memory, and one websocket a player."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from worldvq.errors import UsageError, WorldVQError, one_line, plural
from worldvq.play import messages, security
from worldvq.play.controls import idle_action, sliders
from worldvq.play.game import Game
from worldvq.play.messages import MOST_BRANCHES, pack
from worldvq.play.real import Real, Stream, Takes
from worldvq.play.rows import Rows
from worldvq.play.security import Budget, Gate, Limits
from worldvq.play.starts import Openings
from worldvq.types import ActionSpace

FILES = {
    "/": ("index.html", "text/html"),
    "/play.js": ("play.js", "text/javascript"),
    "/play.css": ("play.css", "text/css"),
}
TOO_MUCH, FULL, BROKEN = 1008, 1013, 1011
"""Codes with which connections are closed (RFC 6455)."""
SWITCH_SECONDS = 2e-4
"""How long a thread may keep the interpreter from another: at Python's 5 ms, a flood of requests would stall a dream,
whose thread asks for it hundreds of times a frame."""


@dataclass
class Table:
    """What is played, and by how many.

    Attributes:
        title: Name of the environment.
        space: What an action is.
        frame_size: Height and width.
        openings: Where dreams begin; None plays the real environment alone.
        plans: Labels and actions among which a "what if" chooses.
        open_real: Builds the real environment; None dreams alone.
        takes: Where real episodes are kept; None keeps none.
        limits: What players may do.
    """

    title: str
    space: ActionSpace
    frame_size: tuple[int, int]
    openings: Openings | None = None
    plans: tuple[Sequence[str], np.ndarray] = ((), np.empty(0))
    open_real: Callable[[], Stream] | None = None
    takes: Takes | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Nobody plays yet."""
        self.players, self.rows = 0, Rows()
        self.enough = asyncio.Event()

    def sit_down(self) -> Game:
        """Return a new player's game."""
        real = self.open_real and Real(self.open_real, self.takes, recording=self.openings is None)
        return Game(self.rows, self.space, self.openings, real or None)

    def hello(self) -> bytes:
        """Return the first message: what can be done here, and thumbnails."""
        openings, (labels, actions) = self.openings, self.plans
        starts = openings.starts if openings else []
        space = self.space.to_json() | {"idle": idle_action(self.space), "sliders": sliders(self.space)}
        about = {
            "kind": "hello",
            "title": self.title,
            "frame": self.frame_size,
            "space": space,
            "starts": len(starts),
            "dream": openings is not None,
            "real": self.open_real is not None,
            "record": self.takes is not None and openings is not None,
            "branches": MOST_BRANCHES,
            "plans": [
                {"label": label, "action": action.tolist()} for label, action in zip(labels, actions, strict=True)
            ],
        }
        if openings is not None:
            world = openings.world
            sampling = world.sampling_with({})
            about |= {"grid": world.tokenizer.grid, "codes": world.tokenizer.num_codes}
            about |= {"temperature": sampling["temperature"]}
        return pack(about, *(start.frames[-1] for start in starts))


def make_app(table: Table, hosts: frozenset[str], token: str | None) -> Gate:
    """Return the application behind its gate; see :class:`worldvq.play.security.Gate`."""
    folder = resources.files("worldvq.play") / "page"
    files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}

    async def page(request: Request) -> Response:
        body, kind = files[request.url.path]
        return Response(body, media_type=f"{kind}; charset=utf-8")

    async def play(websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect, OSError):
            await _play(table, websocket)

    routes = [*(Route(path, page) for path in files), WebSocketRoute("/play", play)]
    return Gate(Starlette(routes=routes), hosts, token)


async def _play(table: Table, websocket: WebSocket) -> None:
    """Let one player play until it leaves or has to go."""
    if table.players >= table.limits.players:
        text = f"{plural(table.players, 'player')} are playing already: try again later"
        await _close(websocket, FULL, text)
        return
    table.players += 1
    game = table.sit_down()
    try:
        await _send(websocket, table.hello())
        await game.begin()
        await _send(websocket, frame_message(game, table, "begin"))
        await _listen(table, websocket, game)
    except (WebSocketDisconnect, OSError):
        return
    except Exception as error:  # whatever it says is for whoever runs the server
        print(f"worldvq: a player's game ended: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
        with contextlib.suppress(Exception):
            await _close(websocket, BROKEN, "something failed here: the server says what")
    finally:
        table.players -= 1
        try:
            await game.close()
        except WorldVQError as error:
            print(f"worldvq: {error}", file=sys.stderr)
        if table.takes is not None and table.takes.enough:
            table.enough.set()


async def _listen(table: Table, websocket: WebSocket, game: Game) -> None:
    """Answer messages one by one; ends when there is nothing more to answer."""
    budget = Budget(table.limits.messages)
    while not table.enough.is_set():
        try:
            received = await asyncio.wait_for(websocket.receive(), table.limits.idle_seconds)
        except TimeoutError:
            await _close(websocket, TOO_MUCH, "nothing was done for long: reload the page to play on")
            return
        if received["type"] == "websocket.disconnect":
            return
        if not budget.spend(1):
            await _close(websocket, TOO_MUCH, "too many messages")
            return
        try:
            message = messages.parse(received.get("text") or "")
        except UsageError as error:
            await _close(websocket, TOO_MUCH, str(error))
            return
        try:
            await _answer(table, websocket, game, message)
        except UsageError as error:
            await _send(websocket, pack({"kind": "notice", "text": str(error)}))
        if table.takes is not None and table.takes.enough:
            table.enough.set()
    await _close(websocket, 1000, "all that was asked for is recorded")


async def _answer(table: Table, websocket: WebSocket, game: Game, message: messages.Message) -> None:
    """Do what a message asks for, and send what comes of it."""
    match message:
        case messages.Act():
            await game.act(message.action)
        case messages.Begin():
            await game.begin(message.start)
        case messages.Restart():
            await game.begin()
        case messages.Undo():
            await game.undo(message.steps)
        case messages.Temperature():
            game.set_temperature(message.value)
            return
        case messages.Overlay():
            game.overlay = message.on
            return
        case messages.Record():
            game.set_recording(message.on)
        case messages.Take():
            await game.take(message.branch)
        case messages.Clip():
            await _send(websocket, pack({"kind": "clip"}, await game.clip(message.fps)))
            return
        case messages.WhatIf():
            async for moments in game.what_if(message.actions, message.steps):
                about = {"kind": "branches", "step": moments[0].steps - game.now.steps, "of": message.steps}
                about |= {"totals": [m.total - game.now.total for m in moments], "ends": [m.end for m in moments]}
                await _send(websocket, pack(about, *(m.frame for m in moments if m.frame is not None)))
            return
    await _send(websocket, frame_message(game, table, message.kind))


async def _send(websocket: WebSocket, message: bytes) -> None:
    """Send a message; see :func:`_unless_closed`."""
    with _unless_closed():
        await websocket.send_bytes(message)


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    """Close a player's connection; see :func:`_unless_closed`."""
    with _unless_closed():
        await websocket.close(code, reason)


@contextlib.contextmanager
def _unless_closed() -> Iterator[None]:
    """Turn what the server says where a connection is closed below the application into what it says elsewhere.

    Raises:
        WebSocketDisconnect: The connection is closed.
    """
    try:
        yield
    except RuntimeError:
        raise WebSocketDisconnect(1006) from None


def frame_message(game: Game, table: Table, cause: str) -> bytes:
    """Return the message that shows where a game is: a header, and the frames of dream and reality, and the entropy."""
    now = game.now
    about: dict[str, Any] = {"kind": "frame", "cause": cause, "step": now.steps, "undo": game.undoable}
    parts: list[Any] = []
    if now.frame is not None:
        about |= {"reward": now.reward, "total": now.total, "end": now.end, "passes": now.passes}
        parts.append(now.frame)
    if now.real is not None:
        about["real"] = {"reward": now.real.reward, "total": now.real.total, "over": now.real.over}
        parts.append(now.real.frame)
    if now.entropy is not None:
        about["entropy"] = float(now.entropy.mean())
        parts.append(now.entropy.astype("<f4"))
    if table.takes is not None:
        about["kept"] = table.takes.count
    return pack(about, *parts)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        UsageError: The port is in use, or the address is none of this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}, port {port} ({error}): give another with --port") from None


def hosts_of(host: str, port: int) -> frozenset[str]:
    """Return what browsers send as ``Host`` that were given the address of this server."""
    names = ["127.0.0.1", "localhost"] if host == "127.0.0.1" else [f"[{host}]" if ":" in host else host.lower()]
    return frozenset(f"{name}:{port}" for name in names) | frozenset(names if port == 80 else ())


def make_server(table: Table, hosts: frozenset[str], token: str | None) -> uvicorn.Server:
    """Return a server of the page; see :class:`worldvq.play.security.Gate`."""
    config = uvicorn.Config(
        make_app(table, hosts, token),
        http=security.Connection,
        ws=security.PlayerConnection,
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",  # what fails in a game is printed below; the rest is what hostile clients provoke
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws_max_size=security.MOST_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)


async def run(server: uvicorn.Server, table: Table, listening: socket.socket) -> None:
    """Serve until the server is told to stop, or all is recorded that was asked for."""

    async def until_enough() -> None:
        await table.enough.wait()
        server.should_exit = True

    watching = asyncio.create_task(until_enough())
    await server.serve(sockets=[listening])
    watching.cancel()


def serve(table: Table, listening: socket.socket, token: str | None, host: str) -> None:
    """Serve until Ctrl-C, or until all is recorded that was asked for."""
    server = make_server(table, hosts_of(host, listening.getsockname()[1]), token)
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        asyncio.run(run(server, table, listening))
    except KeyboardInterrupt:
        print("stopped")
    finally:
        sys.setswitchinterval(before)
        table.rows.close()
