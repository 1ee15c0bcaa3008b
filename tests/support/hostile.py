"""Hostile connections to the server of the page, of many kinds."""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import os
import random
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

LONGEST = 15.0
"""Seconds that a connection is pursued."""


def upgrade(host: str, **changes: str) -> bytes:
    """Return the request that opens a websocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    fields = {"Host": host, "Origin": f"http://{host}", "Upgrade": "websocket", "Connection": "Upgrade"}
    fields |= {"Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"} | changes
    return ("GET /play HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n").encode()


def frame(payload: bytes, opcode: int = 1, claimed: int | None = None) -> bytes:
    """Return a masked websocket frame, which may claim another length."""
    size = len(payload) if claimed is None else claimed
    head = bytes([0x80 | opcode])
    head += bytes([0x80 | size]) if size < 126 else bytes([0xFF]) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


async def open_websocket(reader, writer, host) -> None:
    """Become a player; what is sent before the answer would be lost."""
    writer.write(upgrade(host))
    await reader.readuntil(b"\r\n\r\n")


async def random_bytes(reader, writer, host) -> None:
    writer.write(os.urandom(random.randint(1, 100_000)))


async def slow_headers(reader, writer, host) -> None:
    for byte in b"GET / HTTP/1.1\r\nHost: " + b"a" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.3)


async def silence(reader, writer, host) -> None:
    await writer.drain()


async def endless_headers(reader, writer, host) -> None:
    writer.write(b"GET / HTTP/1.1\r\n")
    while True:
        writer.write(b"X-A: " + b"b" * 1000 + b"\r\n")
        await writer.drain()


async def huge_body(reader, writer, host) -> None:
    writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000000\r\n\r\n".encode())
    while True:
        writer.write(b"x" * 2**16)
        await writer.drain()


async def wrong_origin(reader, writer, host) -> None:
    writer.write(upgrade(host, Origin="http://evil.example"))


async def wrong_host(reader, writer, host) -> None:
    writer.write(upgrade(host, Host="evil.example", Origin="http://evil.example"))


async def other_paths(reader, writer, host) -> None:
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/play.js/../server.py", "/\0"):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))


async def huge_frame(reader, writer, host) -> None:
    await open_websocket(reader, writer, host)
    writer.write(frame(b"x" * 2**16, claimed=2**40))
    while True:
        writer.write(b"x" * 2**16)
        await writer.drain()


async def message_flood(reader, writer, host) -> None:
    await open_websocket(reader, writer, host)
    while True:
        writer.write(frame(b'{"kind":"act","action":0}') * 50)
        await writer.drain()
        await asyncio.sleep(0)


async def ping_flood(reader, writer, host) -> None:
    """And never read an answer."""
    await open_websocket(reader, writer, host)
    while True:
        writer.write(frame(b"p" * 125, opcode=9) * 50)
        await writer.drain()
        await asyncio.sleep(0)


async def nonsense(reader, writer, host) -> None:
    await open_websocket(reader, writer, host)
    for payload in (b"{}", b"[" * 10_000, b'{"kind":"begin","start":1e99}', b"\xff\xfe", os.urandom(100)):
        writer.write(frame(payload, opcode=random.choice([1, 2])))


async def hang_up(reader, writer, host) -> None:
    """In the middle of a frame."""
    await open_websocket(reader, writer, host)
    writer.write(frame(b'{"kind":"act","action":0}') + frame(b'{"kind":', claimed=100)[:9])
    await reader.read(100)


KINDS: list[Callable[..., Awaitable[None]]] = [
    random_bytes,
    slow_headers,
    silence,
    endless_headers,
    huge_body,
    wrong_origin,
    wrong_host,
    other_paths,
    huge_frame,
    message_flood,
    ping_flood,
    nonsense,
    hang_up,
]


async def attack(address: str, count: int, at_once: int) -> collections.Counter[tuple[str, str]]:
    """Open connections of all kinds; returns how many of each ended in which way."""
    parts, ended = urlsplit(address), collections.Counter()
    turn = asyncio.Semaphore(at_once)

    async def one(kind: Callable[..., Awaitable[None]]) -> None:
        async with turn:
            how = "refused"
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                try:
                    async with asyncio.timeout(LONGEST):
                        await kind(reader, writer, parts.netloc)
                        if kind is not hang_up:
                            while await reader.read(2**16):
                                pass
                    how = "hung up" if kind is hang_up else "closed by the server"
                except TimeoutError:
                    how = "still open in the end"
                except (OSError, EOFError):
                    how = "cut by the server"
                finally:
                    writer.transport.abort()
            ended[kind.__name__, how] += 1

    await asyncio.gather(*(one(KINDS[number % len(KINDS)]) for number in range(count)))
    return ended
