"""Requests by a connection to the service that is kept: they are answered without a task.

What can go wrong with them then is to end as it does for those that are awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from test_gateway import Client, serving, settings

from oyez.ambient import SystemAmbient
from oyez.config import GatewaySettings, Listen
from oyez.gateway.upstream import Upstream

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello"
GET = b"GET /open HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /open HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
POST = b"POST /open HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"

Say = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Service:
    """It answers each request on a connection as ``says`` does at that time."""

    def __init__(self) -> None:
        self.says: Say = hello
        self.port = 0
        self.asked: list[bytes] = []
        self.connections = 0
        self.asks = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [
                    line for line in head.split(b"\r\n") if line.startswith(b"content-length:")
                ]
                body = await reader.readexactly(int(length[0][15:])) if length else b""
                self.asked.append(head + body)
                self.asks.set()
                await self.says(reader, writer)
        self.left.set()
        writer.close()


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    server = await asyncio.start_server(service, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    yield service
    server.close()


@contextlib.asynccontextmanager
async def kept(folder: Path, service: Service, timeout: float) -> AsyncIterator[Client]:
    """A gateway that keeps one connection to the service."""
    limits = f"body_limit = 1000\ntimeout = {timeout}"
    async with serving(settings(folder, service.port, limits)) as client:
        assert (await client.raw(LAST)).endswith(b"hello")
        service.asks.clear()
        yield client


@pytest.fixture
async def client(tmp_path: Path, service: Service) -> AsyncIterator[Client]:
    async with kept(tmp_path, service, 30) as client:
        yield client


async def test_no_task_is_made(client: Client, service: Service) -> None:
    told = asyncio.Event()

    async def when_told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await told.wait()
        writer.write(OK)

    reader, writer = await asyncio.open_connection(client.address.host, client.address.port)
    for _ in range(3):
        service.says = when_told
        before = len(asyncio.all_tasks())
        writer.write(GET)
        await service.asks.wait()
        assert len(asyncio.all_tasks()) == before
        told.set()
        assert b" 200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"
        service.asks.clear()
        told.clear()
    writer.close()
    assert service.connections == 1


async def test_many_in_one_piece_are_answered_in_their_order(
    client: Client, service: Service
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = service.asked[-1].split(b" ")[1]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(target), target))

    service.says = echo
    targets = [b"/open/%03d" % number for number in range(200)]
    heads = [GET.replace(b"/open", target) for target in targets[:-1]]
    answer = await client.raw(b"".join(heads) + LAST.replace(b"/open", targets[-1]))
    assert [each for each in targets if each in answer] == targets
    assert answer.count(b"HTTP/1.1 200 OK") == len(targets)
    places = [answer.index(each) for each in targets]
    assert places == sorted(places)


@pytest.mark.parametrize("pieces", [1, 3, len(OK)])
async def test_an_answer_in_pieces(client: Client, service: Service, pieces: int) -> None:
    async def in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = -(-len(OK) // pieces)
        for at in range(0, len(OK), size):
            writer.write(OK[at : at + size])
            await writer.drain()
            await asyncio.sleep(0)

    service.says = in_pieces
    answer = await client.raw(GET + LAST)
    assert answer.count(b"hello") == 2
    assert answer.endswith(b"hello")
    assert service.connections == 1


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ([b"content-length: 4\r\n\r\nbody"], b"body"),
        ([b"content-length: 4\r\n\r\n", b"bo", b"dy"], b"body"),
        ([b"transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"], b"body"),
        ([b"transfer-encoding: chunked\r\n\r\n4\r\nbo", b"dy\r\n0\r\n", b"\r\n"], b"body"),
        ([b"content-length: 0\r\n\r\n"], b""),
    ],
)
async def test_a_body_with_the_head_or_behind_it(
    client: Client, service: Service, sent: list[bytes], seen: bytes
) -> None:
    reader, writer = await asyncio.open_connection(client.address.host, client.address.port)
    writer.write(POST)
    for each in sent:
        writer.write(each)
        await writer.drain()
        await asyncio.sleep(0.01)
    assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"hello")
    writer.close()
    assert service.asked[-1].endswith(b"\r\n\r\n" + seen)
    assert b"content-length: %d\r\n" % len(seen) in service.asked[-1]


async def test_a_body_over_the_limit_is_refused(client: Client, service: Service) -> None:
    asked = len(service.asked)
    answer = await client.raw(POST + b"transfer-encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert len(service.asked) == asked


async def test_the_answer_to_head_has_no_body(client: Client, service: Service) -> None:
    async def to_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.removesuffix(b"hello"))

    service.says = to_head
    answer = await client.raw(LAST.replace(b"GET", b"HEAD"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_a_service_that_does_not_answer_in_time(tmp_path: Path, service: Service) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)

    async with kept(tmp_path, service, 1) as client:
        service.says = never
        assert (await client.raw(LAST)).startswith(b"HTTP/1.1 504 ")
        await asyncio.wait_for(service.left.wait(), 10)
        service.says = hello
        assert (await client.raw(LAST)).endswith(b"hello")
    assert service.connections == 2


async def test_a_client_that_leaves_ends_its_request(client: Client, service: Service) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)

    service.says = never
    _, writer = await asyncio.open_connection(client.address.host, client.address.port)
    writer.write(GET)
    await service.asks.wait()
    writer.close()
    await asyncio.wait_for(service.left.wait(), 10)
    service.says = hello
    assert (await client.raw(LAST)).endswith(b"hello")


@pytest.mark.parametrize(("method", "status", "asked"), [(b"GET", b"200", 2), (b"POST", b"502", 1)])
async def test_a_service_that_disconnects(
    client: Client, service: Service, method: bytes, status: bytes, asked: int
) -> None:
    before = len(service.asked)

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service.says = hello
        writer.close()

    service.says = leave
    answer = await client.raw(LAST.replace(b"GET", method))
    assert answer.split(b" ")[1] == status
    assert len(service.asked) - before == asked


@pytest.mark.parametrize(
    "says",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\nx: y\r\n\r\n",
        b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_a_service_that_violates_the_protocol(
    client: Client, service: Service, says: bytes
) -> None:
    async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)

    service.says = wrong
    assert (await client.raw(LAST)).startswith(b"HTTP/1.1 502 ")
    service.says = hello
    assert (await client.raw(LAST)).endswith(b"hello")


async def test_an_answer_cut_off_halfway_ends_the_connection(
    client: Client, service: Service
) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK[:-2])
        await writer.drain()
        writer.close()

    service.says = half
    answer = await client.raw(GET + LAST)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 5\r\n" in answer
    assert answer.endswith(b"hel")
    assert answer.count(b"HTTP/1.1") == 1


async def test_an_answer_that_ends_with_its_connection(client: Client, service: Service) -> None:
    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await writer.drain()
        writer.close()

    service.says = until_closed
    answer = await client.raw(LAST)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"5\r\nhello\r\n0\r\n\r\n")


async def test_what_nobody_asked_for_is_not_the_next_ones_answer(
    client: Client, service: Service
) -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + OK.replace(b"hello", b"wrong"))

    service.says = twice
    for _ in range(3):
        answer = await client.raw(LAST)
        assert answer.endswith(b"hello")
        assert b"wrong" not in answer


async def test_a_connection_that_is_given_back_after_the_end_is_closed(service: Service) -> None:
    upstream = Upstream(Listen("127.0.0.1", service.port), GatewaySettings(), SystemAmbient())
    connection = await upstream.connect()
    upstream.close()
    await connection.ask(GET, to_head=False)
    while not connection.complete:
        await connection.more()
    assert connection.take() == b"hello"
    connection.release()
    assert upstream.kept() is None
    async with asyncio.timeout(10):
        await service.left.wait()


async def test_a_connection_that_the_service_has_closed_is_not_kept(service: Service) -> None:
    async def and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        writer.close()

    service.says = and_close
    upstream = Upstream(Listen("127.0.0.1", service.port), GatewaySettings(), SystemAmbient())
    connection = await upstream.connect()
    await connection.ask(GET, to_head=False)
    async with asyncio.timeout(10):
        await service.left.wait()
        while not connection._lost:
            await asyncio.sleep(0)
    assert connection.take() == b"hello"
    connection.release()
    assert not upstream._idle
