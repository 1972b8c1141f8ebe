"""Redis Streams, held to the suite and to its own traps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Connection as Link

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.ports import Record
from oyez.testing.broker_suite import Factory, ServerBrokerSuite
from oyez.testing.proxy import Proxy
from servers import Server, server


class TestRedis(ServerBrokerSuite):
    row = "redis"

    @pytest.fixture(autouse=True)
    def _redis(self) -> None:
        self.redis = server("redis")

    def server(self, tmp_path: Path) -> Server:
        return self.redis

    def make(self, tmp_path: Path) -> Factory:
        return lambda: connect(self.redis.url, SystemAmbient(), root=tmp_path, group="suite.group")

    def url(self, tmp_path: Path) -> str:
        return self.redis.url

    def proxy(self, tmp_path: Path) -> Proxy:
        return self.redis.proxy()

    def make_through(self, tmp_path: Path, proxy: Proxy) -> Factory:
        url = proxy.through(self.redis.url) + "?deadline=3"
        return lambda: connect(url, SystemAmbient(), root=tmp_path, group="suite.group")

    async def test_writes_that_uvloop_refuses_are_a_lost_connection(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A service runs on uvloop, which says RuntimeError where asyncio says nothing at all."""
        left = dict.fromkeys((b"XREAD", b"XRANGE"), 0)
        send = Link.send_packed_command

        async def refuses(link: Link, command: Iterable[bytes], check_health: bool = True) -> None:
            parts = [*command]
            for word in left:
                if left[word] and any(word in part for part in parts):
                    left[word] -= 1
                    raise RuntimeError("unable to perform operation; the handler is closed")
            await send(link, parts, check_health)

        monkeypatch.setattr(Link, "send_packed_command", refuses)
        stream = f"suite.{uuid4().hex[:8]}"
        broker = self.make(tmp_path)()
        await broker.open()
        try:
            await broker.create(stream, 1)
            left |= dict.fromkeys(left, 3)
            reading = broker.read(stream, 0, 0)
            for number in range(20):
                arrival = asyncio.ensure_future(anext(reading))
                await asyncio.sleep(0)
                record = Record(stream=stream, key=None, headers={"id": str(number)}, data=b"{}")
                await broker.publish([record])
                async with asyncio.timeout(30):
                    (came,) = (await arrival).records
                assert came.headers["id"] == str(number)
            await reading.aclose()
        finally:
            await broker.close()
        assert left == dict.fromkeys(left, 0)
