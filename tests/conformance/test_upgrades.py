"""Tables that a former version of Oyez made are upgraded, and keep what they hold.

``stored/STORE-N.sql`` is what a store held after step N. All of them hold the same: a partition at
position 41 in the hands of host:1:aaaa, two handled events, three parked ones (p2 behind p1), a
dead letter, two announced events (the second one delayed) and the service's own table.
``stored/embedded-N.sql`` is what a file of the embedded broker held: a stream whose first records
retention had deleted and whose last ones came in one append, and a stream without records.
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
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.brokers.embedded.options import EmbeddedOptions
from oyez.brokers.embedded.schema import STEPS
from oyez.causes import cause_of
from oyez.errors import BrokerCorrupt, StoreOutdated
from oyez.ports import BEGINNING, Changes, Claim, Record, Store
from oyez.runtime.audit import Actor, list_acts
from oyez.runtime.dead import list_dead, list_groups, redrive
from oyez.stores import connect, sqlite
from oyez.stores.postgres import schema
from servers import server

STORED = Path(__file__).parent / "stored"
LOGS = sorted(STORED.glob("embedded-*.sql"))
FORMER = sorted(file.stem for file in STORED.glob("*.sql") if file not in LOGS)
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
    assert [file.stem for file in LOGS] == [f"embedded-{n}" for n in range(1, len(STEPS))]


async def test_several_replicas_upgrade_it_once_and_nothing_is_lost(former: Make) -> None:
    with pytest.raises(StoreOutdated, match="older Oyez"):
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
    (group,) = await list_groups(store)
    assert (group.handler, group.cause) == ("charge", "failed # of # attempts: ValueError: no")
    assert group.group == cause_of(
        "charge", "orders.order_placed", "failed 2 of 2 attempts: ValueError: no"
    )
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
    by = Actor(who="ann", via="command")
    await redrive(store, letter["id"], SystemAmbient(), by=by, old=True)
    assert await list_dead(store) == []
    assert [act.who for act in await list_acts(store)] == ["ann"]
    announced = await store.outbox(0, NOW, 10)
    sent = Changes(claim=CLAIM, sent=[row.seq for row in announced], handled=[_REPLAYED])
    await store.begin().commit(sent)
    assert await store.outbox(0, NOW, 10) == []
    assert await store.seen([_REPLAYED]) == {_REPLAYED}
    await store.close()


_ORDERS = "create table orders (id text primary key, state text not null);"
_REPLAYED = ("r1", "/shop/orders", "charge")


# -- the embedded broker's file --------------------------------------------------------------------


@pytest.fixture(params=LOGS, ids=lambda file: file.stem)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of the embedded broker that is as a former step left it."""
    path = tmp_path / "events.db"
    connection = apsw.Connection(str(path))
    for _ in connection.execute(request.param.read_text()):
        pass
    connection.close()
    return path


def _kept(number: int, key: str | None, data: bytes | None, **more: str) -> tuple[object, ...]:
    headers = {"id": f"e{number}", "type": "shop.placed", "source": "/shop/orders", **more}
    return key, headers, data


def _open(path: Path) -> EmbeddedBroker:
    return EmbeddedBroker(path, SystemAmbient(), EmbeddedOptions(retention=1e12, poll=3_600.0))


async def _read(broker: EmbeddedBroker, partition: int, after: int) -> list[Record]:
    found: list[Record] = []
    (*_, end) = (await broker.ends("shop.orders"))[: partition + 1]
    async with asyncio.timeout(20.0):
        async for batch in broker.read("shop.orders", partition, after):
            found += batch.records
            if found[-1].position >= end:
                return found
    raise AssertionError


async def test_the_processes_of_a_machine_upgrade_a_log_once(log: Path) -> None:
    brokers = [_open(log) for _ in range(4)]
    await asyncio.gather(*(broker.open() for broker in brokers))
    broker = brokers[0]
    assert await broker.streams() == {"shop.orders": 3, "shop.empty": 2}
    assert list(await broker.starts("shop.orders")) == [2, 4, 4]
    assert list(await broker.ends("shop.orders")) == [6, 12, 14]
    assert list(await broker.starts("shop.empty")) == [0, 0]
    assert list(await broker.ends("shop.empty")) == [0, 0]
    caused = {"causationid": "e1"}
    one = await _read(broker, 0, BEGINNING)
    assert [(r.position, r.time - NOW) for r in one] == [(3, 200), (4, 204), (5, 207), (6, 207)]
    assert [(r.key, r.headers, r.data) for r in one] == [
        _kept(13, "", b""),
        _kept(17, "k2", b'{"n":17}'),
        _kept(22, "k2", b'{"n":22}'),
        _kept(27, "k2", b'{"n":27}', **caused),
    ]
    two = await _read(broker, 1, 4)
    assert [r.position for r in two] == list(range(5, 13))
    assert (two[0].key, two[0].headers, two[0].data) == _kept(11, None, None)
    three = await _read(broker, 2, 11)
    assert [(r.key, r.headers, r.data) for r in three] == [
        _kept(26, "k1", b'{"n":26}'),
        _kept(30, "k0", b'{"n":30}'),
        _kept(31, "k1", b'{"n":31}', **caused),
    ]
    (odd,) = [r for r in await _read(broker, 2, BEGINNING) if r.position == 6]
    assert (odd.key, odd.headers, odd.data) == _kept(
        12, "k\u00fc\U0001f600", b"\x00\xff", note="\u00e4 'quoted'\n"
    )
    await broker.publish([Record(stream="shop.orders", key="k2", headers={"id": "new"}, data=b"")])
    assert [r.headers["id"] for r in await _read(broker, 0, 5)] == ["e27", "new"]
    await asyncio.gather(*(broker.close() for broker in brokers))


@pytest.mark.parametrize("log", LOGS[:1], ids=["embedded-1"], indirect=True)
async def test_a_damaged_log_is_not_upgraded(log: Path) -> None:
    connection = apsw.Connection(str(log))
    connection.execute("update record set data = x'ff' where partition = 2 and position = 7")
    before = list(connection.execute("select * from record"))
    for _ in range(2):
        with pytest.raises(BrokerCorrupt, match=r"record 7 of shop\.orders.*backup"):
            await _open(log).open()
        assert list(connection.execute("select * from record")) == before
        assert connection.pragma("user_version") == 1
    connection.close()
