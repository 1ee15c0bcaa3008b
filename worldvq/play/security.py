"""Who may speak to the page's server, and how much.

It speaks to browsers on this machine, and a page of another origin that runs in one of them is the likeliest attacker:
it can send requests here, under names that it has pointed to this address. So ``Host`` and ``Origin`` have to be
exactly what was meant. Connections are bounded below the application, where bytes come in: in number, in time until
they have asked for something, and in bytes a second.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

COOKIE = "worldvq_token"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
MOST_CONNECTIONS = 128
REQUEST_SECONDS = 10.0
"""How long a connection may last that is no player's: the page is small."""
MOST_REQUEST_BYTES = 2**15
"""What it may send meanwhile, over all its requests."""
MOST_MESSAGE_BYTES = 2**14
MOST_WAITING = 16
"""Messages that a player may send ahead: a page has one step on its way, and what was clicked meanwhile."""
BYTES_PER_SECOND = 2**15
"""What a player may send, on the mean: a page sends a tenth of that."""


@dataclass(frozen=True)
class Limits:
    """What players may do.

    Attributes:
        players: At a time.
        idle_seconds: Without a message.
        messages: A second, on the mean; twice as many at once.
    """

    players: int = 8
    idle_seconds: float = 900.0
    messages: float = 100.0


class Budget:
    """A token bucket: so much a second on the mean, and ``burst`` seconds' worth at once."""

    def __init__(self, per_second: float, burst: float = 2.0):
        self._rate, self._most = per_second, per_second * burst
        self._left, self._then = self._most, time.monotonic()

    def spend(self, amount: float) -> bool:
        """Take an amount; returns whether there was enough."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._then) * self._rate) - amount
        self._then = now
        return not self.is_spent

    @property
    def is_spent(self) -> bool:
        """Whether more was taken than there was."""
        return self._left < 0


class Gate:
    """Lets through what is meant for this server, and adds headers to what it answers.

    Args:
        app: What is behind it.
        hosts: What ``Host`` may be, exactly; and ``Origin``, after ``http://``.
        token: What has to be known; None asks for nothing.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], token: str | None):
        self._app, self._hosts, self._token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        problem = self._problem(scope)
        if problem is None and self._token is not None:
            if scope["type"] == "http" and scope["path"] == "/" and self._knows(_asked(scope)):
                # Into a cookie, so that it stays in no history and in nobody's picture of the screen.
                answer = RedirectResponse("/", 303)
                answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
                await answer(scope, receive, with_headers)
                return
            if not self._knows(_cookie(scope)):
                problem = "this page needs the token that the server printed: open the address with ?token=..."
        if problem is None:
            await self._app(scope, receive, with_headers)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})  # before it is accepted: 403
        else:
            await PlainTextResponse(problem + "\n", 403)(scope, receive, with_headers)

    def _problem(self, scope: Scope) -> str | None:
        host, origin = _values(scope, b"host"), _values(scope, b"origin")
        if len(host) != 1 or host[0] not in self._hosts:
            return "this is not the host that the server was started for"
        if origin != [f"http://{host[0]}"] and (origin or scope["type"] == "websocket"):
            return "this is asked for by a page of another origin"
        return None

    def _knows(self, given: str) -> bool:
        return self._token is not None and secrets.compare_digest(given.encode(), self._token.encode())


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _asked(scope: Scope) -> str:
    return parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=8).get("token", [""])[0]


def _cookie(scope: Scope) -> str:
    try:
        morsel = SimpleCookie("; ".join(_values(scope, b"cookie"))).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


class Connection(H11Protocol):
    """HTTP that waits for nobody: a connection asks for something soon, or is cut; and there are only so many."""

    def connection_made(self, transport: Any) -> None:
        """Begin the time that it has."""
        super().connection_made(transport)
        self._end = self.loop.call_later(REQUEST_SECONDS, transport.abort)
        self._left = MOST_REQUEST_BYTES
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take in a request; none of ours has a body."""
        self._left -= len(data)
        if self._left < 0:
            self.transport.abort()
        else:
            super().data_received(data)

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Let a player stay."""
        self._end.cancel()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._end.cancel()
        super().connection_lost(exc)


class PlayerConnection(WebSocketsSansIOProtocol):
    """A websocket that reads no more than a page says, and nothing from who does not read its answers."""

    def connection_made(self, transport: Any) -> None:
        """Begin counting."""
        super().connection_made(transport)
        self._budget = Budget(BYTES_PER_SECOND)

    def data_received(self, data: bytes) -> None:
        """Take in bytes, pings and halves of messages among them, or end the connection."""
        if self._budget.spend(len(data)):
            super().data_received(data)
        if self._budget.is_spent or self.queue.qsize() > MOST_WAITING:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Read nothing until what was sent is read: pings would be answered into memory for ever."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()
