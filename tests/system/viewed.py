"""A view, its history, and a process that fills it until somebody kills it; for test_views.py."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

from oyez import GONE, Event, Gone, Service, View, applies
from oyez.ambient import SystemAmbient
from oyez.brokers import connect as connect_broker
from oyez.ports import Record
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import BatchHandled, Signal, Signals
from oyez.stores import connect as connect_store
from oyez.transaction import Announcer, Origin
from oyez.view import apply, view_of

PARTITIONS = 4


class Placed(Event, type="view.placed", key="order"):
    order: str
    cents: int
    note: str


class Removed(Event, type="view.removed", key="order"):
    order: str


class Weighed(Event, type="view.weighed", key="order"):
    order: str
    grams: float


def orders(version: int) -> type[View]:
    """Return the view as of that version; all versions do the same."""

    class Orders(View, table="order_weights", key="order", index=("cents",), version=version):
        order: str
        cents: int = 0
        note: str | None = None
        times: int = 0
        heavy: bool = False
        weights: list[float] = []  # noqa: RUF012 - copied for each

        @applies
        def placed(self, event: Placed) -> None:
            self.take(event)
            self.times += 1

        @applies
        def removed(self, event: Removed) -> Gone:
            return GONE

        @applies
        def weighed(self, event: Weighed) -> None:
            self.weights.append(event.grams)
            self.heavy = event.grams > 900

    return Orders


Orders = orders(1)
Again = orders(2)
Third = orders(3)


class Newer(View, table="order_weights", key="order", version=2):
    order: str
    cents: int = 0

    @applies
    def placed(self, event: Placed) -> None:
        self.take(event)


class Strict(View, table="order_weights", key="order", version=2):
    order: str
    cents: int = 0

    @applies
    def placed(self, event: Placed) -> None:
        if event.cents == 42:
            raise ValueError("not 42")


def desk(view: type[View] = Orders) -> Service:
    service = Service("desk")
    service.view(view)
    return service


def events(count: int) -> Iterator[tuple[str, Event]]:
    """That many events, each with the service that publishes it.

    Of a key that is removed, all come from one service: those of two have no order between them.
    """
    keys = max(10, count // 20)
    for number in range(count):
        key = number * 7919 % keys
        order = f"o{key:06}"
        if number % 3 == 2 and key % 10:
            yield "depot", Weighed(order=order, grams=number % 1000 + 0.5)
        elif number % 11 == 5 and not key % 10:
            yield "till", Removed(order=order)
        else:
            yield "till", Placed(order=order, cents=number, note=f"'{number}\" ünd : x")


def folded(count: int) -> list[dict[str, object]]:
    """The rows that the view must have after all events."""
    kind, rows = view_of(Orders), dict[str, View]()
    for _, event in events(count):
        order: str = event.order  # type: ignore[attr-defined]
        row = apply(kind, rows.pop(order, None), event)
        if row is not GONE:
            rows[order] = row
    return [kind.values(rows[order]) for order in sorted(rows)]


async def publish(folder: Path, count: int, part: slice = slice(None)) -> None:
    """Publish a part of the history of ``count`` events, some of it twice, as relays do."""
    ambient = SystemAmbient()
    broker = broker_in(folder)
    await broker.open()
    makers = {name: Announcer("test", name, ambient) for name in ("till", "depot")}
    batch: list[Record] = []
    chosen = islice(enumerate(events(count)), part.start, part.stop)
    for number, (service, event) in chosen:
        row = makers[service].announce(event, Origin(), "2026-01-01T00:00:00Z", 0.0, None)
        record = Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data)
        batch += [record] * (2 if number % 50 == 0 else 1)
        if len(batch) >= 1000:
            await broker.publish(batch)
            batch = []
    await broker.publish(batch)
    await broker.close()


async def publish_to_another(folder: Path) -> None:
    """Publish an event that is for another service alone."""
    broker = broker_in(folder)
    await broker.open()
    event = Placed(order="elsewhere", cents=1, note="")
    row = Announcer("test", "till", SystemAmbient()).announce(
        event, Origin(), "2026-01-01T00:00:00Z", 0.0, None, recipient="another"
    )
    await broker.publish(
        [Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data)]
    )
    await broker.close()


def broker_in(folder: Path):  # type: ignore[no-untyped-def]
    """The embedded broker in that folder."""
    return connect_broker(
        "embedded:events.db",
        SystemAmbient(),
        root=folder,
        group="desk",
        partitions=PARTITIONS,
        retention=86_400.0,
    )


@asynccontextmanager
async def process(
    folder: Path, store: str, signals: Signals | None = None, view: type[View] = Orders
) -> AsyncIterator[ServiceProcess]:
    ambient = SystemAmbient()
    made = ServiceProcess(
        desk(view),
        ProcessSettings(system="test", partitions=PARTITIONS, lease=0.6, root=folder),
        broker=broker_in(folder),
        store=connect_store(store, ambient, root=folder),
        ambient=ambient,
        signals=signals or Signals(),
    )
    await made.start()
    try:
        yield made
    finally:
        await made.drain()


async def fill(folder: Path, store: str) -> None:
    """Fill the view, and print a line after each batch."""
    signals = Signals()

    def tell(signal: Signal) -> None:
        if isinstance(signal, BatchHandled):
            print(signal.events, flush=True)

    signals.listen(tell)
    async with process(folder, store, signals):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1]), sys.argv[2]))
