"""Connections to endpoints: kept for the next request, not for long, and not too many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from oyez.webhooks import connections
from oyez.webhooks.client import Client
from oyez.webhooks.reach import Reach

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Endpoint:
    """A server that counts its connections."""

    def __init__(self) -> None:
        self.came = 0
        self.open = 0
        self.requests = 0
        self.closes = False
        self.gate: asyncio.Event | None = None
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        self.open += 1
        try:
            while await reader.readuntil(b"\r\n\r\nbody"):
                self.requests += 1
                if self.gate is not None:
                    await self.gate.wait()
                writer.write(ANSWER)
                if self.closes:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@asynccontextmanager
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)  # between two looks at a condition with a deadline


def client(*to: Endpoint) -> Client:
    return Client(Reach(["127.0.0.0/8"], [each.port for each in to], http=True))


async def post(by: Client, to: Endpoint) -> bytes | None:
    return (await by.post(to.url, {}, b"body", most=100)).body


async def test_one_is_kept_for_the_next_request_to_the_same_endpoint() -> None:
    async with endpoint() as one, endpoint() as other, client(one, other) as made:
        for _ in range(3):
            assert await post(made, one) == await post(made, other) == b"ok"
        assert (one.came, other.came) == (1, 1)
        assert (one.open, other.open) == (1, 1)
    await until(lambda: one.open == other.open == 0)


async def test_so_many_at_once_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "KEPT", 2)
    async with endpoint() as one, client(one) as made:
        one.gate = asyncio.Event()
        all_of_them = asyncio.gather(*(post(made, one) for _ in range(5)))
        await until(lambda: one.requests == 5)
        one.gate.set()
        assert await all_of_them == [b"ok"] * 5
        await until(lambda: one.open == 2)
        assert one.came == 5


async def test_what_the_endpoint_closed_is_not_used_again() -> None:
    async with endpoint() as one, client(one) as made:
        one.closes = True
        for count in (1, 2, 3):
            assert await post(made, one) == b"ok"
            await until(lambda: one.open == 0)
            assert one.came == count


async def test_none_is_kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE", 0.0)
    async with endpoint() as one, client(one) as made:
        for _ in range(2):
            assert await post(made, one) == b"ok"
        assert one.came == 2


async def test_a_request_that_is_cancelled_takes_its_connection_along() -> None:
    async with endpoint() as one, client(one) as made:
        one.gate = asyncio.Event()
        asked = asyncio.create_task(post(made, one))
        await until(lambda: one.requests == 1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        one.gate.set()
        await until(lambda: one.open == 0)
        assert await post(made, one) == b"ok"
        assert one.came == 2


async def test_those_in_use_are_closed_with_the_client() -> None:
    async with endpoint() as one:
        one.gate = asyncio.Event()
        async with client(one) as made:
            asked = asyncio.create_task(post(made, one))
            await until(lambda: one.requests == 1)
        assert await asked is None
        one.gate.set()
        await until(lambda: one.open == 0)
