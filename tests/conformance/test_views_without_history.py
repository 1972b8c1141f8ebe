"""Views on brokers that keep no history: the service's own lanes apply their events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from aws import Account

from oyez import Event, Service, View, applies
from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.errors import BrokerRefused
from oyez.inspection.views import ViewVersion, read_views
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores.sqlite import SqliteStore
from servers import server

DEADLINE = 60.0


class Placed(Event, type="shop.desk.placed", key="order_id"):
    order_id: str
    cents: int


class Odd(Event, type="shop.desk.odd", key="order_id"):
    order_id: str


def desk(version: int = 1) -> tuple[Service, type[View]]:
    """Return a service that keeps that version of a view of its own events."""

    class Orders(View, table="orders", key="order_id", version=version):
        order_id: str
        cents: int = 0

        @applies
        def placed(self, event: Placed) -> None:
            self.cents += event.cents

        @applies
        def odd(self, event: Odd) -> None:
            raise ValueError("of a test")

    service = Service("desk", publishes=(Placed, Odd))
    service.view(Orders)
    return service, Orders


@pytest.fixture(params=["rabbitmq, quorum queues", "sns_sqs"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "sns_sqs":
        return Account().url()
    return server("rabbitmq").url + "?queue=quorum"


def after(system: str, event_id: str) -> str:
    """Return the token of an event that `desk` placed; see `Service.read`."""
    return f"/{system}/desk;{event_id};shop.desk.placed"


@asynccontextmanager
async def at_work(
    service: Service, url: str, folder: Path, system: str
) -> AsyncIterator[ServiceProcess]:
    ambient = SystemAmbient()
    process = ServiceProcess(
        service,
        ProcessSettings(system=system, partitions=2, broker="of a test"),
        broker=connect(url, ambient, root=folder, group=f"{system}.desk"),
        store=SqliteStore(folder / "desk.db", ambient),
        ambient=ambient,
        signals=Signals(),
    )
    await process.start()
    try:
        yield process
    finally:
        await process.drain()


async def test_a_view_is_kept_up_from_the_first_start_on(url: str, tmp_path: Path) -> None:
    system = f"views-{uuid4().hex[:8]}"
    service, orders = desk()
    async with at_work(service, url, tmp_path, system) as process:
        for number in range(20):
            async with service.transaction() as tx:
                tx.publish(Placed(order_id=f"o{number % 10}", cents=number))
        async with service.transaction() as tx:
            tx.publish(Odd(order_id="o1"))
        async with service.transaction() as tx:
            announced = tx.publish(Placed(order_id="o3", cents=100))
        row = await service.read(orders, "o3", after=after(system, announced), wait=DEADLINE)
        assert row is not None
        assert row.cents == 3 + 13 + 100
        await _until(lambda: _rows(service), 10)
        with pytest.raises(BrokerRefused, match=r"keeps none: see `oyez lag`"):
            await service.staleness(orders)
        async with asyncio.timeout(DEADLINE):
            while not (shown := await _shown(process)).dead:
                await asyncio.sleep(0.1)
        assert (shown.state, shown.read, shown.behind, shown.dead) == ("active", True, None, 1)

    service, _ = desk(version=2)
    with pytest.raises(BrokerRefused, match=r"keep version=1.*another table"):
        async with at_work(service, url, tmp_path, system):
            pass

    service, orders = desk()  # what came meanwhile waits for it, and what it has stays
    async with at_work(service, url, tmp_path, system):
        async with service.transaction() as tx:
            announced = tx.publish(Placed(order_id="o3", cents=1_000))
        row = await service.read(orders, "o3", after=after(system, announced), wait=DEADLINE)
        assert row is not None
        assert row.cents == 3 + 13 + 100 + 1_000


async def _shown(process: ServiceProcess) -> ViewVersion:
    (found,) = await read_views("desk", process.store, process.broker, process.ambient.now())
    return found


async def _rows(service: Service) -> int:
    (row,) = await service.fetch("select count(*) as rows from orders")
    return int(row["rows"])


async def _until(figure: Callable[[], Awaitable[int]], wanted: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while await figure() != wanted:
            await asyncio.sleep(0.1)
