"""Redis Streams, held to the suite and to its own traps."""

from __future__ import annotations

from pathlib import Path

import pytest

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
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
