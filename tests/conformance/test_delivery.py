"""Every broker that processes share, on every store: one behaviour."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("oyez.testing.delivery_suite", "oyez.testing.ticks")

from oyez.testing.delivery_suite import DeliverySuite, ServerDeliverySuite  # noqa: E402
from oyez.testing.proxy import Proxy  # noqa: E402
from servers import Server, server  # noqa: E402


class TestEmbedded(DeliverySuite):
    def broker(self, tmp_path: Path) -> str:
        return "embedded:.oyez/events.db"


class Behind(ServerDeliverySuite):
    """A broker's real server, as `scripts/services` runs it."""

    name: str

    @pytest.fixture(autouse=True)
    def _running(self) -> None:
        self.running = server(self.name)

    def server(self, tmp_path: Path) -> Server:
        return self.running

    def broker(self, tmp_path: Path) -> str:
        return self.running.url

    def proxy(self, tmp_path: Path) -> Proxy:
        return self.running.proxy()

    def broker_through(self, tmp_path: Path, proxy: Proxy) -> str:
        url = proxy.through(self.running.url)
        return f"{url}{'&' if '?' in url else '?'}deadline=3"


class TestRedis(Behind):
    name = "redis"
