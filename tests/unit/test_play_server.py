"""Who may speak to the page's server, what it answers, and that nothing of it is more than was meant."""

import asyncio
import contextlib
import json
import socket
import time

import numpy as np
import pytest
from support.fault_tools import wait_until
from support.hostile import frame, upgrade
from support.play import Page, make_table, picture, serving, talk
from support.worlds import HEIGHT, WIDTH
from websockets.exceptions import ConnectionClosed, InvalidStatus

from worldvq.errors import UsageError
from worldvq.play import security
from worldvq.play.security import Budget, Limits
from worldvq.play.server import hosts_of, listen, make_app

SIZE = (HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def table():
    return make_table()


@pytest.fixture(scope="module")
def port(table):
    with serving(table) as port:
        yield port


def get(port, path="/", host=None, **fields):
    """Status, headers and body of a request."""
    lines = {"Host": host or f"127.0.0.1:{port}", "Connection": "close", **fields}
    request = f"GET {path} HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in lines.items()) + "\r\n"
    head, _, body = talk(port, request.encode("latin-1")).partition(b"\r\n\r\n")
    status, *rest = head.decode("latin-1").split("\r\n")
    headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in rest)}
    return int(status.split()[1]), headers, body


def closed(page):
    """Code and reason with which the server ends a connection; frames before are left out."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            page.socket.recv(timeout=60)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


def test_a_page_is_greeted_and_plays(port, table):
    with Page(port) as page:
        hello, (header, first) = page.hello, page.first
        assert hello["title"] == "Toy-v0" and hello["frame"] == list(SIZE) and hello["starts"] == 3
        assert hello["space"]["names"] == ["left", "stay", "right"] and hello["space"]["idle"] == 1
        for index, start in enumerate(table.openings.starts):
            np.testing.assert_array_equal(picture(page.thumbnails, SIZE, index), start.frames[-1])
        assert (header["step"], header["undo"], "real" in header) == (0, 0, False)
        after, data = page.ask(kind="act", action=2)
        assert (after["step"], after["undo"], len(data)) == (1, 1, HEIGHT * WIDTH * 3)
        assert page.ask(kind="undo", steps=1)[1] == first
        page.send(kind="overlay", on=True)
        after, data = page.ask(kind="act", action=2)
        entropy = np.frombuffer(data, "<f4", offset=HEIGHT * WIDTH * 3)
        assert len(entropy) == 6 and after["entropy"] == pytest.approx(entropy.mean(), rel=1e-5)
        notice, _ = page.ask("notice", kind="act", action=3)
        assert "outside discrete (3,)" in notice["text"]
        assert page.ask(kind="act", action=0)[0]["step"] == 2  # and nothing was lost
        page.send(kind="what_if", actions=[0, 2], steps=2)
        steps = [page.receive("branches") for _ in range(2)]
        assert [header["step"] for header, _ in steps] == [1, 2]
        assert [len(data) for _, data in steps] == [2 * HEIGHT * WIDTH * 3] * 2
        after, data = page.ask(kind="take", branch=1)
        np.testing.assert_array_equal(picture(data, SIZE), picture(steps[1][1], SIZE, 1))
        assert after["step"] == 4
        assert page.ask("clip", kind="clip", fps=15)[1][4:8] == b"ftyp"


def test_every_answer_says_what_a_browser_may_do(port):
    for path, words in (("/", b"<canvas"), ("/play.js", b"WebSocket"), ("/play.css", b"pixelated"), ("/none", b"")):
        status, headers, body = get(port, path)
        assert status == (404 if path == "/none" else 200) and words in body
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
        assert "access-control-allow-origin" not in headers
    assert b"http://" not in get(port)[2] and b"https://" not in get(port)[2]  # nothing from elsewhere


@pytest.mark.parametrize(
    "path",
    ["/../server.py", "/%2e%2e/server.py", "/page/play.js", "//etc/passwd", "/play.js/..%2f", "/index.html", "/%00"],
)
def test_no_path_reaches_the_file_system(port, path):
    status, _, body = get(port, path)
    assert status == 404 and body == b"Not Found"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", "", "[::1]"])
def test_another_host_is_refused(port, host):
    status, _, body = get(port, host=host or " ")
    assert status in (400, 403) and b"canvas" not in body
    origin = f"http://{host or 'x'}"
    assert b" 403 " in talk(port, upgrade(host, Origin=origin))[:20] or status == 400


def test_localhost_is_this_host_too(port):
    assert get(port, host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1", ""])
def test_a_page_of_another_origin_is_refused(port, origin):
    origin = origin.format(port=port)
    with pytest.raises(InvalidStatus, match="403"):
        Page(port, origin=origin or None)
    if origin:
        assert get(port, Origin=origin)[0] == 403
    with pytest.raises(InvalidStatus, match=r"40[03]"):
        Page(port, additional_headers={"Origin": "http://evil.example"})  # besides the right one


def test_the_token_is_asked_of_everybody(monkeypatch):
    with serving(make_table(), token="seCret-1") as port:
        for path in ("/", "/play.js", "/?token=", "/?token=seCret-2", "/?token=seCret-1x", "/play.js?token=seCret-1"):
            status, _, body = get(port, path)
            assert status == 403 and b"canvas" not in body, path
        for fields in ({}, {"Cookie": "worldvq_token=wrong"}, {"Cookie": "\x80;;=; worldvq_token"}):
            with pytest.raises(InvalidStatus, match="403"):
                Page(port, additional_headers=fields)
        status, headers, _ = get(port, "/?token=seCret-1")
        cookie = headers["set-cookie"]
        assert status == 303 and headers["location"] == "/"  # out of sight
        assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower()
        held = {"Cookie": cookie.partition(";")[0]}
        assert get(port, **held)[0] == 200
        with Page(port, additional_headers=held) as page:
            assert page.ask(kind="act", action=0)[0]["step"] == 1
        with pytest.raises(InvalidStatus, match="403"):  # the token does not stand for the origin
            Page(port, additional_headers=held, origin="http://evil.example")


@pytest.mark.parametrize(
    "data", ["{}", "nonsense", '{"kind": "act"}', b"\x00\x01", json.dumps({"kind": "begin", "start": "../x"})]
)
def test_what_is_no_message_ends_the_connection(port, data):
    with Page(port) as page:
        page.socket.send(data)
        code, reason = closed(page)
        assert code == 1008 and reason.startswith("no message of this page")


def test_a_message_that_is_too_large_ends_the_connection(port):
    with Page(port) as page:
        page.socket.send("x" * (security.MOST_MESSAGE_BYTES + 1))
        assert closed(page)[0] == 1009


def test_too_many_messages_end_the_connection():
    with serving(make_table(limits=Limits(messages=4))) as port, Page(port) as page:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(9):
                page.ask("frame", kind="restart")
        assert closed(page) == (1008, "too many messages")


def test_messages_sent_far_ahead_cut_the_connection(port):
    def steps(ahead):
        count = 0
        with Page(port) as page, contextlib.suppress(ConnectionClosed):
            page.socket.socket.sendall(frame(b'{"kind":"act","action":0}') * ahead)
            while count < ahead:
                page.receive("frame")
                count += 1
        return count

    assert steps(3) == 3
    assert steps(200) < 20


CUT = (ConnectionResetError, BrokenPipeError)
PING = frame(b"p" * 125, opcode=9)


def test_bytes_are_counted_whatever_they_are(port):
    """Pings are answered below the application."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(upgrade(f"127.0.0.1:{port}"))
        connection.recv(100)
        with pytest.raises(CUT):
            for _ in range(1000):
                connection.sendall(PING * 100)


def test_who_reads_no_answers_is_read_from_no_more(monkeypatch):
    monkeypatch.setattr(security, "BYTES_PER_SECOND", 2**40)
    with serving(make_table()) as port, socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        connection.sendall(upgrade(f"127.0.0.1:{port}"))
        connection.recv(100)
        with pytest.raises(TimeoutError):
            for _ in range(4000):
                connection.sendall(PING * 100)


def test_a_request_is_bounded_in_bytes(port):
    head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100000000\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head)
        with pytest.raises(CUT):
            for _ in range(100):
                connection.sendall(b"x" * 2**14)
                time.sleep(0.001)


def test_who_does_nothing_for_long_has_to_go():
    with serving(make_table(limits=Limits(idle_seconds=0.3))) as port, Page(port) as page:
        code, reason = closed(page)
        assert code == 1008 and "reload" in reason


def test_there_is_room_for_so_many_and_then_for_others():
    table = make_table(limits=Limits(players=2))
    with serving(table) as port:
        with Page(port), Page(port) as second:
            third = Page(port)
            assert closed(third) == (1013, "2 players are playing already: try again later")
            third.__exit__()
            assert second.ask(kind="act", action=0)[0]["step"] == 1
        wait_until(lambda: table.players == 0, 30)
        with Page(port) as page:
            assert page.ask(kind="act", action=0)[0]["step"] == 1


def test_who_asks_for_nothing_is_cut(monkeypatch):
    monkeypatch.setattr(security, "REQUEST_SECONDS", 0.5)
    with serving(make_table()) as port, Page(port) as page:
        for begun in (b"", b"GET / HTTP/1.1\r\nHost: 127", b"GET / HTTP/1.1\r\nA: " + b"b" * 1000):
            assert talk(port, begun) == b""
        assert page.ask(kind="act", action=0)[0]["step"] == 1  # a player stays


def test_connections_are_bounded_in_number(monkeypatch):
    monkeypatch.setattr(security, "MOST_CONNECTIONS", 5)
    with serving(make_table()) as port, contextlib.ExitStack() as stack, Page(port) as page:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert page.ask(kind="act", action=0)[0]["step"] == 1
        assert talk(port, f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()) == b""
        stack.close()
        wait_until(lambda: b"canvas" in talk_once(port), 30)


def talk_once(port):
    with contextlib.suppress(OSError):
        return get(port)[2]
    return b""


def test_no_traceback_reaches_a_client(capfd):
    table = make_table()

    def broken(*_):
        raise RuntimeError("secret of /srv/worldvq")

    with serving(table) as port:
        with Page(port) as page:
            before, table.rows.step = table.rows.step, broken
            page.send(kind="act", action=0)
            assert closed(page) == (1011, "something failed here: the server says what")
        table.rows.step = before
        with Page(port) as page:
            assert page.ask(kind="act", action=0)[0]["step"] == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "RuntimeError: secret of /srv/worldvq" in said


def test_a_browser_that_closes_in_the_middle_of_a_frame_leaves_nothing(port, table):
    wait_until(lambda: table.players == 0, 30)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(upgrade(f"127.0.0.1:{port}"))
            connection.recv(100)
            connection.sendall(frame(b'{"kind":"act","action":0}') + b"\x81")
    wait_until(lambda: table.players == 0, 30)
    with Page(port) as page:
        assert page.ask(kind="act", action=0)[0]["step"] == 1


@pytest.mark.parametrize("text", ["no message", '{"kind":"act","action":0}'])
def test_a_connection_that_closes_below_the_application_is_no_failure_of_a_game(text, table, capfd):
    sent = []

    async def receive():
        return {"type": "websocket.receive", "text": text} if sent else {"type": "websocket.connect"}

    async def send(message):
        if len(sent) == 3:  # accepted, hello and a frame: the server has closed, and takes nothing more
            raise RuntimeError(f"Unexpected ASGI message '{message['type']}', after sending 'websocket.close'.")
        sent.append(message["type"])

    headers = [(b"host", b"box:1"), (b"origin", b"http://box:1")]
    scope = {"type": "websocket", "path": "/play", "query_string": b"", "headers": headers}
    asyncio.run(make_app(table, frozenset({"box:1"}), None)(scope, receive, send))
    assert sent == ["websocket.accept", "websocket.send", "websocket.send"] and table.players == 0
    assert capfd.readouterr().err == ""


def test_a_port_in_use_is_one_line_with_the_way_out(port):
    with pytest.raises(UsageError, match=f"port {port}.*--port"):
        listen("127.0.0.1", port)
    with pytest.raises(UsageError, match="--port"):
        listen("192.0.2.1", 0)  # an address of nobody's


def test_hosts_are_what_browsers_send():
    assert hosts_of("127.0.0.1", 7860) == {"127.0.0.1:7860", "localhost:7860"}
    assert hosts_of("Box.local", 80) == {"box.local:80", "box.local"}
    assert hosts_of("::1", 7860) == {"[::1]:7860"}


def test_a_budget_is_a_mean_and_a_burst():
    budget = Budget(per_second=100, burst=0.1)
    assert [budget.spend(5) for _ in range(3)] == [True, True, False]
    time.sleep(0.3)
    assert budget.spend(9) and not budget.spend(9)
