"""Connections of people who have shown no key: how many there may be, how long each may take, and what the log says."""

import asyncio
import io
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from publish.connections import (
    BODY_WITHIN_S,
    CONNECTIONS_MAX,
    FILES_OF_OTHERS,
    FIRST_BYTE_WITHIN_S,
    HEAD_WITHIN_S,
    HEADERS_MAX,
    PIPELINED_MAX,
    SENT_WITHIN_S,
    Connection,
    Crowd,
    room_for,
)
from publish.repeats import Sparing

HEAD = b"GET /segments HTTP/1.1\r\nHost: shop\r\n"
POST = b"POST /user HTTP/1.1\r\nHost: shop\r\n"


class Clock:
    """Say the time that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Site:
    """A server of this process whose application answers as a test lets it."""

    def __init__(self, connections_max: int = 100) -> None:
        self.clock = Clock()
        self.crowd = Crowd(connections_max, self.clock)
        self.has_key = False
        self.answer = b"x"
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = 0
        self.port = 0

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer."""
        self.asked += 1
        scope["state"]["key"] = "a key" if self.has_key else None
        if self.has_key and scope["method"] == "POST":
            while (await receive()).get("more_body"):
                pass
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.answer})

    async def connect(self, sent: bytes = b"", buffer_bytes: int | None = None) -> socket.socket:
        """Connect, send, and wait until the server has looked at it."""
        connection = socket.socket()
        if buffer_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", self.port))
        await loop.sock_sendall(connection, sent)
        await self.settle()
        return connection

    async def settle(self) -> None:
        """Let the loop work off what has arrived: this process is both ends."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def later(self, seconds: float) -> None:
        """Let time pass, and the server look around."""
        self.clock.now += seconds
        self.crowd.see_out()
        await self.settle()


def run(test: Callable[[Site], Awaitable[None]], **given: int) -> None:
    async def main() -> None:
        site = Site(**given)
        config = uvicorn.Config(site.app, interface="asgi3", http=site.crowd.protocol, ws="none", log_config=None)
        config.load()
        state, loop = ServerState(), asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            made: Connection = site.crowd.protocol(config=config, server_state=state, app_state={}, _loop=loop)
            return made

        server = await loop.create_server(protocol, "127.0.0.1", 0)
        site.port = server.sockets[0].getsockname()[1]
        async with server:
            await test(site)
            for connection in [*state.connections]:
                connection.transport.abort()
            await site.settle()

    asyncio.run(main())


def is_closed(connection: socket.socket) -> bool:
    try:
        return not connection.recv(65536)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def read(connection: socket.socket) -> bytes:
    return connection.recv(65536)


def test_who_sends_nothing_is_closed_and_hears_nothing() -> None:
    async def test(site: Site) -> None:
        idle = await site.connect()
        await site.later(FIRST_BYTE_WITHIN_S)
        assert len(site.crowd) == 1
        await site.later(0.1)
        assert is_closed(idle)
        assert len(site.crowd) == 0

    run(test)


@pytest.mark.parametrize(
    ("sent", "drop", "within_s"),
    [
        (b"GET /", b"x", HEAD_WITHIN_S),
        (HEAD + b"X-Long: ", b"x", HEAD_WITHIN_S),
        (POST + b"Content-Length: 1000\r\n\r\n", b"x", BODY_WITHIN_S),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", BODY_WITHIN_S),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ", b"x", BODY_WITHIN_S),
    ],
    ids=["an address", "a head", "a body", "chunks", "headers after chunks"],
)
def test_a_request_that_does_not_end_is_given_up_however_often_a_byte_comes(
    sent: bytes, drop: bytes, within_s: int
) -> None:
    async def test(site: Site) -> None:
        site.has_key = True
        slow = await site.connect(sent)
        for _ in range(within_s):
            assert len(site.crowd) == 1
            slow.send(drop)
            await site.settle()
            await site.later(1)
        await site.later(0.1)
        assert read(slow).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert is_closed(slow)

    run(test)


def test_the_body_of_a_request_that_was_refused_is_not_waited_for_either() -> None:
    async def test(site: Site) -> None:
        slow = await site.connect(POST + b"Content-Length: 10\r\n\r\n{")
        assert read(slow).startswith(b"HTTP/1.1 200 OK")
        await site.later(BODY_WITHIN_S + 0.1)
        assert is_closed(slow)

    run(test)


def test_a_request_that_is_being_answered_has_all_the_time_it_needs() -> None:
    async def test(site: Site) -> None:
        site.may_answer.clear()
        patient = await site.connect(HEAD + b"\r\n")
        await site.later(3600)
        site.may_answer.set()
        await site.settle()
        assert read(patient).startswith(b"HTTP/1.1 200 OK")
        await site.later(FIRST_BYTE_WITHIN_S + 0.1)
        assert is_closed(patient)

    run(test)


def test_who_does_not_read_an_answer_is_closed_and_who_reads_slowly_is_not() -> None:
    async def test(site: Site) -> None:
        site.answer = b"x" * 20_000_000
        deaf, slow = [await site.connect(HEAD + b"\r\n", 65536) for _ in range(2)]
        await site.later(1)
        for _ in range(3):
            read_bytes = 0
            while read_bytes < 1_000_000:
                with suppress(BlockingIOError):
                    read_bytes += len(slow.recv(65536))
                await site.settle()
            await site.later(SENT_WITHIN_S - 5)
        assert len(site.crowd) == 1
        assert not is_closed(slow)
        slow.close()
        deaf.close()
        await site.later(SENT_WITHIN_S + 6)
        assert len(site.crowd) == 0

    run(test)


def test_where_there_are_too_many_the_idlest_goes_and_never_one_whose_key_is_being_answered() -> None:
    async def test(site: Site) -> None:
        site.may_answer.clear()
        site.has_key = True
        busy = await site.connect(HEAD + b"\r\n")
        idle = [await site.connect() for _ in range(3)]
        fresh = await site.connect(HEAD + b"\r\n")
        assert len(site.crowd) == 4
        assert [is_closed(one) for one in (busy, *idle, fresh)] == [False, True, False, False, False]
        more = [await site.connect(HEAD + b"\r\n") for _ in range(2)]
        assert len(site.crowd) == 4
        assert not any(map(is_closed, more))
        refused = await site.connect()
        assert is_closed(refused)
        site.may_answer.set()
        await site.settle()
        assert read(busy).startswith(b"HTTP/1.1 200 OK")

    run(test, connections_max=4)


def test_an_address_that_has_too_many_loses_its_idlest_after_a_second() -> None:
    async def test(site: Site) -> None:
        idle = [await site.connect() for _ in range(10)]
        await site.later(0.9)
        assert len(site.crowd) == 10
        await site.later(0.2)
        assert len(site.crowd) == site.crowd.of_address_max == 5
        assert [is_closed(one) for one in idle] == [True] * 5 + [False] * 5

    run(test, connections_max=20)


def test_who_shares_no_address_with_the_crowd_stays() -> None:
    class Stub:
        can_go = True

        def __init__(self) -> None:
            self.transport = self
            self.is_aborted = False

        def abort(self) -> None:
            self.is_aborted = True

    crowd = Crowd(20)
    alone: Any = Stub()
    crowd.enter(alone, "192.0.2.1")
    many: list[Any] = [Stub() for _ in range(30)]
    for one in many:
        crowd.enter(one, "192.0.2.2")
    assert not alone.is_aborted
    assert [one.is_aborted for one in many] == [True] * 11 + [False] * 19


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT shop:80 HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        HEAD + b"X: y\r\n" * HEADERS_MAX + b"\r\n",
        (HEAD + b"\r\n") * 10_000,
    ],
    ids=["TLS", "HTTP/2", "CONNECT", "no text", "many headers", "pipelined"],
)
def test_what_is_no_request_is_refused_and_closed(sent: bytes) -> None:
    async def test(site: Site) -> None:
        connection = await site.connect(sent)
        assert b"HTTP/1.1 400 " in read(connection)
        assert is_closed(connection)
        assert site.asked <= PIPELINED_MAX + 1

    run(test)


def test_a_request_that_asks_for_a_websocket_is_answered_without() -> None:
    async def test(site: Site) -> None:
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\n\r\n"
        connection = await site.connect(HEAD + upgrade)
        assert read(connection).startswith(b"HTTP/1.1 200 OK")
        connection.send(b"\x81\x00")
        await site.later(FIRST_BYTE_WITHIN_S + 0.1)
        assert is_closed(connection)

    run(test)


@pytest.mark.parametrize(("files", "connections"), [(256, 1), (1024, 512), (1_048_576, CONNECTIONS_MAX)])
def test_connections_leave_room_for_other_files(files: int, connections: int) -> None:
    assert room_for(files) == connections
    assert connections == 1 or connections + FILES_OF_OTHERS <= files


# --- the log ---


def logged(handler: Sparing, *lines: str, name: str = "habitus.serve", exc_info: Any = None) -> None:
    for line in lines:
        handler.handle(logging.LogRecord(name, logging.WARNING, "", 0, line, None, exc_info))


def test_a_line_is_written_once_and_then_counted() -> None:
    clock, stream = Clock(), io.StringIO()
    handler = Sparing(stream, clock)

    logged(handler, "no key", *["no key"] * 12_345, "too long")
    for _ in range(59):
        clock.now += 1
        handler.tell()
    assert [line.partition("WARNING ")[2] for line in stream.getvalue().splitlines()] == ["no key", "too long"]
    clock.now += 1
    handler.tell()
    logged(handler, "no key", "too long")
    clock.now += 30
    handler.close()

    assert [line.partition("WARNING ")[2] for line in stream.getvalue().splitlines()] == [
        "no key",
        "too long",
        "no key (repeated 12,345 times in 60 s)",
        "too long",
        "no key (repeated once in 30 s)",
    ]


def test_an_error_is_its_type_and_place_and_what_asyncio_shows_of_objects_is_left_out() -> None:
    stream = io.StringIO()
    handler = Sparing(stream)
    try:
        raise ValueError("user_001")
    except ValueError as error:
        logged(handler, "failed\n", exc_info=(ValueError, error, error.__traceback__))
    logged(handler, "socket.accept() out of system resource\nsocket: <socket fd=1>", "of <Task 1>", name="asyncio")
    logged(handler, "of <Task 2>", name="asyncio")

    text = stream.getvalue()
    assert "failed: ValueError at test_connections.py:" in text
    assert "user_001" not in text
    assert len(text.splitlines()) == 3


def test_a_log_that_nobody_can_read_stops_nothing() -> None:
    stream, clock = io.StringIO(), Clock()
    handler = Sparing(stream, clock)
    stream.close()

    logged(handler, "no key", "no key")
    clock.now += 60
    handler.tell()
    handler.close()
