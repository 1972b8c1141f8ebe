"""Tables that a former version of Oyez made are upgraded, and keep what they hold.

``stored/STORE-N.sql`` is what a store held after step N. All of them hold the same: a partition at
position 41 in the hands of host:1:aaaa, two handled events, three parked ones (p2 behind p1), a
dead letter, two announced events (the second one delayed) and the service's own table.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import apsw
import asyncpg
import pytest

from oyez import tables
from oyez.ambient import SystemAmbient
from oyez.errors import StoreRefused
from oyez.ports import Changes, Claim, Store
from oyez.runtime.dead import list_dead, redrive
from oyez.stores import connect, sqlite
from oyez.stores.postgres import schema
from servers import server

STORED = Path(__file__).parent / "stored"
FORMER = sorted(file.stem for file in STORED.glob("*.sql"))
NEWEST = {"postgresql": len(schema.STEPS), "sqlite": len(sqlite.STEPS)}
NOW = 1_790_000_000.0
"""When all of it was stored."""
CLAIM = Claim(stream="shop.orders", partition=3, owner="host:1:aaaa", epoch=5)

Make = Callable[[], Store]


@pytest.fixture(params=FORMER)
async def former(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes stores on one database that is as a former step left it."""
    kind = request.param.partition("-")[0]
    script = (STORED / f"{request.param}.sql").read_text()
    if kind == "sqlite":
        connection = apsw.Connection(str(tmp_path / "store.db"))
        for _ in connection.execute(script):
            pass
        connection.close()
        yield lambda: connect("sqlite:store.db", SystemAmbient(), root=tmp_path)
        return
    place, name = server("postgresql"), f"test_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(place.url)
    await admin.execute(script.replace(request.param.replace("postgresql-", "stored_"), name))
    mark = "&" if "?" in place.url else "?"
    yield lambda: connect(f"{place.url}{mark}schema={name}", SystemAmbient(), root=tmp_path)
    await admin.execute(f'drop schema "{name}" cascade')
    await admin.close()


def test_every_former_step_is_stored() -> None:
    wanted = [f"{kind}-{n}" for kind, steps in NEWEST.items() for n in range(1, steps)]
    assert sorted(wanted) == FORMER


async def test_several_replicas_upgrade_it_once_and_nothing_is_lost(former: Make) -> None:
    with pytest.raises(StoreRefused, match="older Oyez"):
        await former().open(create=False)
    stores = [former() for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    store = stores[0]
    cursors = await store.fetch(tables.CURSORS, {"reader": ""})
    assert sorted((row["stream"], row["position"], row["epoch"]) for row in cursors) == [
        ("oyez:outbox", 0, 0),
        ("shop.orders", 41, 5),
    ]
    handled = [(name, "/shop/orders", "charge") for name in ("h1", "h2", "p1", "p2", "p3")]
    assert await store.seen([*handled, ("h9", "/shop/orders", "charge")]) == set(handled)
    announced = await store.outbox(0, NOW + 3_600.0, 10)
    assert [row.headers["id"] for row in announced] == ["a1", "a2"]
    assert [row.headers["id"] for row in await store.outbox(0, NOW, 10)] == ["a1"]
    due = await store.due(CLAIM.owner, "charge", NOW + 60.0, 10)
    assert [(one.event_id, one.attempt, one.reader) for one in due] == [
        ("p1", 1, ""),
        ("p3", 0, ""),
    ]
    assert [row["event_id"] for row in await list_dead(store)] == ["d1"]
    assert await store.fetch("select * from orders", {}) == [{"id": "4711", "state": "placed"}]
    assert await store.migrate([("001_orders.sql", _ORDERS)]) == []
    await asyncio.gather(*(store.close() for store in stores))


async def test_work_goes_on_where_it_was(former: Make) -> None:
    """The claim holds, a chain goes on to its next event, a dead letter is redriven."""
    store = former()
    await store.open()
    first, _ = await store.due(CLAIM.owner, "charge", NOW + 60.0, 10)
    await store.begin().commit(Changes(claim=CLAIM, position=44, settled=[first], time=NOW + 1.0))
    due = await store.due(CLAIM.owner, "charge", NOW + 60.0, 10)
    assert sorted(one.event_id for one in due) == ["p2", "p3"]
    (letter,) = await list_dead(store)
    await redrive(store, letter["id"], SystemAmbient(), old=True)
    assert await list_dead(store) == []
    announced = await store.outbox(0, NOW, 10)
    sent = Changes(claim=CLAIM, sent=[row.seq for row in announced], handled=[_REPLAYED])
    await store.begin().commit(sent)
    assert await store.outbox(0, NOW, 10) == []
    assert await store.seen([_REPLAYED]) == {_REPLAYED}
    await store.close()


_ORDERS = "create table orders (id text primary key, state text not null);"
_REPLAYED = ("r1", "/shop/orders", "charge")
