"""Claims that were committed and never came to be held."""

from __future__ import annotations

from pathlib import Path

from oyez import Event, Service, Transaction
from oyez.brokers.memory import MemoryBroker
from oyez.errors import StoreUnavailable
from oyez.ports import Parameters, Record, Row
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores.sqlite import SqliteStore
from oyez.testing import VirtualAmbient


class Placed(Event, type="shop.placed", key="order"):
    order: str


class Fails(SqliteStore):
    """Out of reach for a moment, after the claims and before their lanes began."""

    left = 1

    async def fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        if self.left and "group by chain" in sql:
            self.left -= 1
            raise StoreUnavailable("for a moment")
        return await super().fetch(sql, parameters)


async def test_what_was_claimed_and_lost_on_its_way_is_claimed_again(tmp_path: Path) -> None:
    """Nobody else would take it: its owner lives."""
    ambient, service, seen = VirtualAmbient(), Service("desk"), list[str]()

    @service.on(Placed)
    def take(event: Placed, tx: Transaction) -> None:
        seen.append(event.order)

    broker = MemoryBroker(ambient, partitions=8)
    await broker.create("shop.till", 8)
    store = Fails(tmp_path / "desk.db", ambient, inline=True, durable=False)
    process = ServiceProcess(
        service,
        ProcessSettings(system="shop", broker="memory"),
        broker=broker,
        store=store,
        ambient=ambient,
        signals=Signals(),
    )
    await process.start()
    for number in range(16):
        await broker.publish([_placed(str(number))])
    await ambient.advance(5.0)
    assert sorted(map(int, seen)) == list(range(16))
    assert store.left == 0
    await process.drain()


def _placed(order: str) -> Record:
    headers = {
        "specversion": "1.0",
        "id": order,
        "source": "/shop/till",
        "type": "shop.placed",
        "subject": order,
    }
    return Record(
        stream="shop.till", key=order, headers=headers, data=b'{"order":"%s"}' % order.encode()
    )
