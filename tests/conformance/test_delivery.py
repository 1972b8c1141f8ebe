"""Every broker that processes share, on every store: one behaviour."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from aws import Account

from oyez.testing.delivery_suite import (
    DeliverySuite,
    ServerDeliverySuite,
    StoreServerSuite,
)
from oyez.testing.proxy import Proxy
from servers import Server, server


class Embedded(DeliverySuite):
    row = "embedded"

    def broker(self, tmp_path: Path) -> str:
        return "embedded:.oyez/events.db"


class Behind(ServerDeliverySuite):
    """A broker's real server, as `scripts/services` runs it."""

    row: str
    options = ""

    @pytest.fixture(autouse=True)
    def _running(self) -> None:
        self.running = server(self.row)

    def server(self, tmp_path: Path) -> Server:
        return self.running

    def broker(self, tmp_path: Path) -> str:
        return _with(self.running.url, self.options)

    def proxy(self, tmp_path: Path) -> Proxy:
        return self.running.proxy()

    def broker_through(self, tmp_path: Path, proxy: Proxy) -> str:
        return _with(proxy.through(self.running.url), f"{self.options}&deadline=3")


class Kafka(Behind):
    row = "kafka"


class Nats(Behind):
    row = "nats"
    options = "sync=always"


class RabbitMq(Behind):
    row = "rabbitmq"


class Redis(Behind):
    row = "redis"


class Postgres(Behind):
    row = "postgresql"


class SnsSqs(Behind):
    row = "sns_sqs"

    @pytest.fixture(autouse=True)
    def _account(self) -> None:
        self.account = Account()

    def broker(self, tmp_path: Path) -> str:
        return self.account.url()

    def broker_through(self, tmp_path: Path, proxy: Proxy) -> str:
        return self.account.url(proxy.through(self.account.endpoint), "wait=1&deadline=3")


class OnSqlite:
    store_row = "sqlite"


class OnPostgres(StoreServerSuite):
    """The service's data in a schema of the test's own."""

    store_row = "postgresql"

    @pytest.fixture(autouse=True)
    def _storing(self) -> None:
        self.storing = server("postgresql")
        self.schema = f"suite_{uuid4().hex[:12]}"

    def store(self, tmp_path: Path) -> str:
        return f"{self.storing.url}?schema={self.schema}"

    def store_server(self, tmp_path: Path) -> Server:
        return self.storing


class TestEmbeddedOnSqlite(OnSqlite, Embedded): ...


class TestEmbeddedOnPostgres(OnPostgres, Embedded): ...


class TestKafkaOnSqlite(OnSqlite, Kafka): ...


class TestKafkaOnPostgres(OnPostgres, Kafka): ...


class TestNatsOnSqlite(OnSqlite, Nats): ...


class TestNatsOnPostgres(OnPostgres, Nats): ...


class TestRabbitMqOnSqlite(OnSqlite, RabbitMq): ...


class TestRabbitMqOnPostgres(OnPostgres, RabbitMq): ...


class TestRedisOnSqlite(OnSqlite, Redis): ...


class TestRedisOnPostgres(OnPostgres, Redis): ...


class TestPostgresOnSqlite(OnSqlite, Postgres): ...


class TestPostgresOnPostgres(OnPostgres, Postgres): ...


class TestSnsSqsOnSqlite(OnSqlite, SnsSqs): ...


class TestSnsSqsOnPostgres(OnPostgres, SnsSqs): ...


def _with(url: str, options: str) -> str:
    options = options.strip("&")
    return f"{url}{'&' if '?' in url else '?'}{options}" if options else url
