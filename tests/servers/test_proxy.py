"""The proxy that tests put before a server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from oyez.testing.proxy import Proxy

WAIT = 10.0
"""Seconds after which what was awaited counts as lost."""
QUIET = 0.2
"""Seconds in which nothing may arrive where nothing is to arrive."""


class Echo:
    """A server that sends back what it gets, and counts its connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.heard = 0
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while data := await reader.read(65536):
                self.heard += len(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.ended.set()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with Proxy(*server.sockets[0].getsockname()) as proxy:
        yield proxy
    server.close()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def connect(proxy: Proxy) -> AsyncIterator[Callable[[], Awaitable[Connection]]]:
    opened: list[asyncio.StreamWriter] = []

    async def open_connection() -> Connection:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        opened.append(writer)
        return reader, writer

    yield open_connection
    for writer in opened:
        writer.close()


async def said(reader: asyncio.StreamReader, count: int) -> bytes:
    async with asyncio.timeout(WAIT):
        return await reader.readexactly(count)


async def hears_nothing(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(QUIET):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def test_passes_bytes_and_ends_both_ways(connect, echo):
    reader, writer = await connect()
    sent = bytes(range(256)) * 40_000
    writer.write(sent)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(-1), WAIT) == sent
    await asyncio.wait_for(echo.ended.wait(), WAIT)


async def test_through_replaces_only_host_and_port(proxy):
    assert proxy.address == f"127.0.0.1:{proxy.port}"
    assert (
        proxy.through("postgresql://oyez:p%40ss@db.example:5432/oyez?sslmode=disable")
        == f"postgresql://oyez:p%40ss@{proxy.address}/oyez?sslmode=disable"
    )
    assert proxy.through("redis://localhost") == f"redis://{proxy.address}"


async def test_cut_resets_connections_and_refuses_new_ones(proxy, connect, echo):
    reader, writer = await connect()
    writer.write(b"hello")
    assert await said(reader, 5) == b"hello"
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), WAIT)
    await asyncio.wait_for(echo.ended.wait(), WAIT)
    for _ in range(50):
        with pytest.raises(ConnectionRefusedError):
            await connect()


async def test_restore_after_a_cut_serves_the_same_port(proxy, connect):
    port = proxy.port
    for _ in range(3):
        proxy.cut()
        proxy.cut()
        proxy.restore()
        assert proxy.port == port
        reader, writer = await connect()
        writer.write(b"again")
        assert await said(reader, 5) == b"again"


async def test_stall_holds_bytes_until_restored(proxy, connect):
    reader, writer = await connect()
    writer.write(b"before")
    assert await said(reader, 6) == b"before"
    proxy.stall()
    writer.write(b"during")
    assert await hears_nothing(reader)
    proxy.restore()
    assert await said(reader, 6) == b"during"


async def test_stall_accepts_connections_that_reach_nobody(proxy, connect, echo):
    proxy.stall()
    reader, writer = await connect()
    writer.write(b"hello")
    writer.write_eof()
    assert await hears_nothing(reader)
    assert echo.connections == 0
    proxy.restore()
    assert await said(reader, 5) == b"hello"


async def test_mute_lets_the_server_hear_what_is_never_answered(proxy, connect, echo):
    reader, writer = await connect()
    writer.write(b"before")
    assert await said(reader, 6) == b"before"
    proxy.mute()
    writer.write(b"commit")
    while echo.heard < 12:
        await asyncio.sleep(0.01)
    assert await hears_nothing(reader)
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await said(reader, 6)


async def test_answers_that_were_held_arrive_when_it_is_restored(proxy, connect):
    reader, writer = await connect()
    proxy.mute()
    writer.write(b"late")
    assert await hears_nothing(reader)
    proxy.restore()
    assert await said(reader, 4) == b"late"


async def test_cut_amid_traffic_leaves_no_error_behind(proxy, connect):
    """Whoever logs what nobody retrieved disturbs whatever runs then."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    async def talk() -> None:
        reader, writer = await connect()
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x")
                if not await reader.read(1):
                    return

    for _ in range(20):
        before = proxy.received
        async with asyncio.timeout(WAIT), asyncio.TaskGroup() as talks:
            for _ in range(20):
                talks.create_task(talk())
            while proxy.received < before + 200:
                await asyncio.sleep(0)
            proxy.cut()
        proxy.restore()
    gc.collect()
    assert told == []


async def test_cut_ends_a_stalled_connection(proxy, connect):
    proxy.stall()
    reader, writer = await connect()
    writer.write(b"hello")
    assert await hears_nothing(reader)
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), WAIT)


async def test_delay_is_of_time_and_not_of_rate(proxy, connect):
    proxy.delay(0.2)
    reader, writer = await connect()
    clock = asyncio.get_running_loop().time
    begun = clock()
    sent = bytes(4 * 1024 * 1024)  # many chunks: one after another they would take minutes
    writer.write(sent)
    assert await said(reader, len(sent)) == sent
    assert 0.4 <= clock() - begun < WAIT
    proxy.restore()
    begun = clock()
    writer.write(b"x")
    await said(reader, 1)
    assert clock() - begun < 0.2


async def test_a_delay_is_not_negative(proxy):
    with pytest.raises(ValueError, match="delay"):
        proxy.delay(-1)


async def test_a_server_that_is_gone_resets_the_client(echo):
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    server.close()
    async with Proxy(*address) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), WAIT)
        writer.close()


async def test_closing_leaves_no_task_and_no_port(echo):
    before = asyncio.all_tasks()
    async with Proxy("127.0.0.1", 1) as proxy:
        port = proxy.port
    assert asyncio.all_tasks() == before
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(RuntimeError, match="async with"):
        proxy.address  # noqa: B018
