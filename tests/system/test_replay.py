"""``oyez replay`` in processes of its own: beside a service, killed, and compared with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from oyez import Event, brokers, stores
from oyez.ambient import SystemAmbient
from oyez.envelope import format_time
from oyez.ports import Broker, Changes, Record, Store
from oyez.runtime.audit import list_acts
from oyez.testing.ticks import until
from oyez.transaction import Announcer, Origin
from servers import server

ORDERS = 40
ROUNDS = 25
TOML = """[system]
name = "depot"
broker = "embedded:.oyez/events.db"
partitions = 4

[services.shipping]
app = "shipping:service"
store = "{store}"
lease = 2.0
"""
SERVICE = """
import asyncio, os
from oyez import Context, Event, Service, State, Transaction

class Placed(Event, type="depot.placed", key="order"):
    order: str
    cents: int

class Paid(Event, type="depot.paid", key="order"):
    order: str

class Ready(Event, type="depot.ready", key="order"):
    order: str

class Noted(Event, type="depot.noted", key="order"):
    order: str
    cents: int

class Parcel(State, key="order"):
    placed: int = 0
    paid: int = 0
    cents: int = 0

service = Service("shipping", migrations="migrations")

@service.on(Placed)
async def place(event: Placed, parcel: Parcel, context: Context) -> Ready:
    if "SLOW" in os.environ:
        await asyncio.sleep(0.003)
    assert context.replayed == ("REPLAY" in os.environ)
    parcel.placed += 1
    parcel.cents += event.cents
    return Ready(order=event.order)

@service.on(Paid)
async def pay(event: Paid, parcel: Parcel) -> None:
    parcel.paid += 1

@service.on(Placed, replay="safe")
async def note(event: Placed, tx: Transaction) -> None:
    tx.execute("insert into noted (name) values (:name) on conflict do nothing", name=event.order)

@service.on(Paid)
async def count(event: Paid, tx: Transaction) -> None:
    tx.execute("update counted set number = number + 1")
"""
OUTWARD = """
@service.on(Paid, replay="safe")
async def call(event: Paid) -> None: ...
"""
SILENT = """
async def note(event: Placed, tx: Transaction) -> None:
    tx.execute("insert into noted (name) values (:name) on conflict do nothing", name=event.order)
"""
ANNOUNCING = """
async def note(event: Placed, tx: Transaction) -> Noted:
    tx.execute("insert into noted (name) values (:name) on conflict do nothing", name=event.order)
    return Noted(order=event.order, cents=event.cents)
"""
MIGRATION = """create table noted (name text primary key);
create table counted (number integer not null);
insert into counted values (0);
"""


class Placed(Event, type="depot.placed", key="order"):
    order: str
    cents: int


class Paid(Event, type="depot.paid", key="order"):
    order: str


class Depot:
    """The system of a test: its files, its broker, its store."""

    def __init__(self, root: Path, broker: Broker, store: Store) -> None:
        self.root = root
        self.broker = broker
        self.store = store

    async def publish(self, rounds: int) -> None:
        """Some events of every order."""
        announcer = Announcer("depot", "desk", SystemAmbient())
        now = format_time(SystemAmbient().now())
        for number in range(rounds):
            records = []
            for order in range(ORDERS):
                for event in (Placed(order=f"o{order}", cents=number), Paid(order=f"o{order}")):
                    row = announcer.announce(event, Origin(), now, 0.0, None)
                    records.append(
                        Record(stream="depot.desk", key=row.key, headers=row.headers, data=row.data)
                    )
            await self.broker.publish(records)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """An ``oyez`` command."""
        return subprocess.Popen(
            [sys.executable, "-m", "oyez", *arguments],
            cwd=self.root,
            env={**os.environ, "OYEZ_PROJECT": str(self.root), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def replay(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Replay to the end; return the exit code and both outputs."""
        began = self.start("replay", "shipping", *arguments, REPLAY="1", **environment)
        out, err = await asyncio.to_thread(began.communicate, timeout=60)
        return began.returncode, out, err

    async def flow(self, key: str) -> Any:
        """What ``oyez flow`` shows, but for who holds it up: that is told of the present time."""
        began = self.start("flow", key, "--json")
        out, err = await asyncio.to_thread(began.communicate, timeout=60)
        assert (began.returncode, err) == (0, "")
        found = json.loads(out)
        for journey in found["journeys"]:
            del journey["held_up_by"]
        return found

    @contextmanager
    def serving(self) -> Any:
        """The service, until the block ends."""
        log = (self.root / "service.log").open("a")
        running = subprocess.Popen(
            [sys.executable, "-m", "oyez", "run", "shipping"],
            cwd=self.root,
            env={**os.environ, "OYEZ_PROJECT": str(self.root)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            running.terminate()
            running.wait(30)
            log.close()

    async def handled(self, rounds: int) -> None:
        """Return when the service has handled all of them, and published what it announced."""

        async def done() -> bool:
            sql = """select (select count(*) from oyez_inbox where reader = '') as handled,
             (select count(*) from oyez_outbox) as waiting"""
            try:
                (row,) = await self.store.fetch(sql, {})
            except Exception:  # noqa: BLE001 - the service has not made its tables yet
                return False
            return bool(row["handled"] == 4 * ORDERS * rounds and not row["waiting"])

        await until(done, 60.0, lambda: (self.root / "service.log").read_text()[-2_000:])

    async def rows(self, kind: str) -> dict[str, Any]:
        """The state of a kind."""
        sql = "select key, data from oyez_state where kind = :kind and version > 0"
        rows = await self.store.fetch(sql, {"kind": kind})
        return {row["key"]: msgspec.msgpack.decode(row["data"]) for row in rows}

    async def positions(self, reader: str) -> int:
        """The sum of a reader's positions."""
        sql = "select sum(position) as positions from oyez_cursor where reader = :reader"
        (row,) = await self.store.fetch(sql, {"reader": reader})
        return int(row["positions"] or 0)


@pytest.fixture(params=["sqlite", "postgresql"])
async def depot(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Depot]:
    """A system whose service has handled some events, and is stopped."""
    url, place, schema = "sqlite:.oyez/shipping.db", None, f"test_{uuid4().hex[:12]}"
    if request.param == "postgresql":
        place = server("postgresql")
        url = f"{place.url}{'&' if '?' in place.url else '?'}schema={schema}"
    (tmp_path / "oyez.toml").write_text(TOML.format(store=url))
    (tmp_path / "shipping.py").write_text(SERVICE)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_tables.sql").write_text(MIGRATION)
    ambient = SystemAmbient()
    broker = brokers.connect("embedded:.oyez/events.db", ambient, root=tmp_path)
    store = stores.connect(url, ambient, root=tmp_path)
    await broker.open()
    await store.open()
    await broker.create("depot.desk", 4)
    system = Depot(tmp_path, broker, store)
    try:
        with system.serving():
            await system.publish(ROUNDS)
            await system.handled(ROUNDS)
        yield system
    finally:
        await store.close()
        await broker.close()
        if place is not None:
            admin = await asyncpg.connect(place.url)
            await admin.execute(f'drop schema if exists "{schema}" cascade')
            await admin.close()


INTERRUPTED = "oyez: interrupted: the same command goes on from here\n"
STATE: Sequence[str] = ("--handler", "place", "--handler", "pay", "--from", "beginning")


@pytest.mark.timeout(120)
async def test_a_dry_run_finds_what_a_change_of_the_code_changes(depot: Depot) -> None:
    """Nothing for the same code; each row, with its fields, for another one; nothing is written."""
    sizes = """select (select count(*) from oyez_inbox) as inbox,
      (select count(*) from oyez_cursor) as cursors, (select count(*) from oyez_state) as states,
      (select count(*) from oyez_outbox) as outbox,
      (select count(*) from oyez_migration) as marks"""
    before = await depot.store.fetch(sizes, {})
    code, out, err = await depot.replay(*STATE, "--dry-run")
    assert (code, err) == (0, "")
    assert f"Parcel: {ORDERS} rows compared: 0 changed, 0 added, 0 missing" in out
    assert f"not announced: {ORDERS * ROUNDS} of depot.ready" in out
    changed = SERVICE.replace("+= event.cents", '+= event.cents + (event.order == "o7")')
    (depot.root / "shipping.py").write_text(changed)
    code, out, err = await depot.replay(*STATE, "--dry-run")
    assert (code, err) == (1, "")
    cents = sum(range(ROUNDS))
    assert f"Parcel  o7   changed     cents: {cents} → {cents + ROUNDS}" in out
    assert f"Parcel: {ORDERS} rows compared: 1 changed, 0 added, 0 missing" in out
    code, out, _ = await depot.replay(*STATE, "--dry-run", "--json")
    found = json.loads(out)
    assert code == 1
    assert found["differences"] == [
        {
            "kind": "Parcel",
            "key": "o7",
            "what": "changed",
            "fields": {"cents": [cents, cents + ROUNDS]},
        }
    ]
    assert await depot.store.fetch(sizes, {}) == before


@pytest.mark.timeout(120)
async def test_a_dry_run_of_safe_handlers_compares_what_they_announce(depot: Depot) -> None:
    """All is undone; events announced are those of the history, until the code changes."""
    safe = ("--from", "beginning", "--handler", "note", "--dry-run")
    events = ORDERS * ROUNDS
    code, out, err = await depot.replay(*safe)
    assert (code, err) == (0, "")
    assert f"announced by safe handlers for {events} events: 0 the same, 0 changed" in out
    announcing = SERVICE.replace(SILENT, ANNOUNCING)
    (depot.root / "shipping.py").write_text(announcing)
    code, out, _ = await depot.replay(*safe, "--json")
    found = json.loads(out)
    assert code == 1
    assert found["announced"] == {
        "added": events,
        "missing": 0,
        "changed": 0,
        "events": events,
        "same": 0,
        "left_out": 0,
    }
    assert {each["kind"] for each in found["differences"]} == {"depot.noted"}
    with depot.serving():
        await depot.publish(2)
        await depot.handled(ROUNDS + 2)
    clear = depot.store.begin()
    await clear.fetch("delete from noted where name < 'o2' returning name", {}, [])
    await clear.commit(Changes())
    noted = await depot.store.fetch("select name from noted order by name", {})
    changed = announcing.replace("cents=event.cents)", 'cents=event.cents + (event.order == "o7"))')
    (depot.root / "shipping.py").write_text(changed)
    code, out, _ = await depot.replay(*safe, "--json")
    found = json.loads(out)["announced"]
    assert (code, found["added"], found["changed"]) == (1, events, 2)
    assert found["same"] == 2 * ORDERS - 2
    assert await depot.store.fetch("select name from noted order by name", {}) == noted


@pytest.mark.timeout(120)
async def test_rows_that_are_not_in_both(depot: Depot) -> None:
    write = depot.store.begin()
    sql = "update oyez_state set key = 'else' where kind = 'Parcel' and key = 'o3'"
    await write.fetch(f"{sql} returning key", {}, [])
    await write.commit(Changes())
    code, out, _ = await depot.replay(*STATE, "--dry-run", "--json")
    found = json.loads(out)
    assert code == 1
    assert {(each["key"], each["what"]) for each in found["differences"]} == {
        ("else", "missing"),
        ("o3", "added"),
    }


@pytest.mark.timeout(120)
async def test_a_dry_run_beside_a_service_that_goes_on(depot: Depot) -> None:
    """Rows that later events change are left out, whether or not they have changed yet."""
    with depot.serving():
        running = asyncio.create_task(depot.replay(*STATE, "--dry-run", "--json", SLOW="1"))
        rounds = ROUNDS
        while not running.done():
            await depot.publish(1)
            rounds += 1
            await depot.handled(rounds)
        code, out, err = await running
    found = json.loads(out)["kinds"]["Parcel"]
    assert (code, err) == (0, "")
    assert found["compared"] + found["left_out"] == ORDERS
    assert found["left_out"] > 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
async def test_state_is_made_anew_by_two_processes(depot: Depot, number: int) -> None:
    """It equals the service's own, which is not touched, and no event is announced."""
    live = await depot.rows("Parcel")
    assert len(live) == ORDERS
    flow = await depot.flow("o1")
    reader, end = "replay:again", await depot.positions("")

    async def halfway() -> bool:
        return 0 < await depot.positions(reader) < end // 2

    first = depot.start("replay", "shipping", *STATE, "--name", "again", REPLAY="1", SLOW="1")
    try:
        await until(halfway, 30.0, lambda: "no position was stored")
    finally:
        first.send_signal(number)
        _, err = await asyncio.to_thread(first.communicate, timeout=30)
    if number == signal.SIGTERM:  # it has finished the batch of each partition
        assert (first.returncode, err) == (130, INTERRUPTED)
    else:
        assert 0 < await depot.positions(reader) < end
    code, out, err = await depot.replay(*STATE, "--name", "again")
    assert (code, err) == (0, "")
    assert f"Parcel@again: {ORDERS} rows" in out
    assert await depot.rows("Parcel@again") == live == await depot.rows("Parcel")
    assert await depot.store.fetch("select * from oyez_outbox", {}) == []
    assert await depot.flow("o1") == flow
    code, out, err = await depot.replay("--from", "beginning", "--name", "again")
    assert (code, out) == (2, "")
    assert "replay again is one of pay, place from beginning" in err


@pytest.mark.timeout(120)
async def test_announced_events_bear_the_name_of_the_replay(depot: Depot) -> None:
    code, out, _ = await depot.replay(*STATE, "--name", "loud", "--announce")
    assert code == 0
    assert "withheld" not in out
    rows = await depot.store.fetch("select headers from oyez_outbox", {})
    marks = [msgspec.json.decode(row["headers"])["replayed"] for row in rows]
    assert marks == ["replay:loud"] * (ORDERS * ROUNDS)


@pytest.mark.timeout(120)
async def test_a_safe_handler_is_called_again_and_no_other(depot: Depot) -> None:
    """Without --handler, those are left out by name that may not be."""
    clear = depot.store.begin()
    await clear.fetch("delete from noted where name < 'o2' returning name", {}, [])
    await clear.commit(Changes())
    code, _, err = await depot.replay("--from", "beginning", "--name", "all")
    assert code == 0
    assert "left out: count writes to tables by itself" in err
    (noted,) = await depot.store.fetch("select count(*) as names from noted", {})
    assert noted == {"names": ORDERS}
    assert await depot.store.fetch("select number from counted", {}) == [
        {"number": ORDERS * ROUNDS}
    ]
    assert await depot.rows("Parcel@all") == await depot.rows("Parcel")
    code, _, err = await depot.replay("--from", "beginning", "--handler", "count")
    assert code == 2
    assert 'declare it replay="safe"' in err


@pytest.mark.timeout(120)
async def test_new_state_takes_the_place_of_the_old(depot: Depot) -> None:
    """Also beside the service, which goes on with it; nothing of the replay is left."""
    changed = SERVICE.replace("+= event.cents", "+= 2 * event.cents")
    (depot.root / "shipping.py").write_text(changed)
    with depot.serving():
        code, out, err = await depot.replay(*STATE, "--name", "twice", "--swap")
        assert (code, err) == (0, "")
        assert f"Parcel: {ORDERS} rows" in out
        await depot.publish(1)
        await depot.handled(ROUNDS + 1)
    number = ROUNDS + 1
    row = {"placed": number, "paid": number, "cents": 2 * sum(range(ROUNDS))}
    assert await depot.rows("Parcel") == {f"o{order}": row for order in range(ORDERS)}
    await nothing_is_left(depot, "twice")
    swapped, begun = await list_acts(depot.store)
    assert (swapped.act, swapped.after) == ("replay.swap", {"kinds": ["Parcel"]})
    assert (begun.act, begun.target) == ("replay.begin", "replay twice")


@pytest.mark.timeout(120)
async def test_no_swap_while_the_service_has_read_less(depot: Depot) -> None:
    await depot.publish(1)
    live = await depot.rows("Parcel")
    code, _, _ = await depot.replay(*STATE, "--name", "ahead")
    assert code == 0
    code, _, err = await depot.replay(*STATE, "--name", "ahead", "--swap")
    assert code == 1
    assert "not swapped: shipping goes on meanwhile" in err
    assert await depot.rows("Parcel") == live
    assert len(await depot.rows("Parcel@ahead")) == ORDERS
    code, _, _ = await depot.replay("--forget", "--name", "ahead")
    assert code == 0
    assert await depot.rows("Parcel") == live
    await nothing_is_left(depot, "ahead")
    acts = [act.act for act in await list_acts(depot.store)]
    assert acts == ["replay.forget", "replay.begin", "replay.begin"]


async def nothing_is_left(depot: Depot, name: str) -> None:
    """No row of a replay is in the store."""
    for table, column, value in (
        ("oyez_inbox", "reader", f"replay:{name}"),
        ("oyez_cursor", "reader", f"replay:{name}"),
        ("oyez_state", "kind", f"Parcel@{name}"),
        ("oyez_migration", "name", f"oyez:replay:{name}"),
    ):
        sql = f"select {column} from {table} where {column} = :value"
        assert await depot.store.fetch(sql, {"value": value}) == [], table


@pytest.mark.timeout(120)
async def test_an_event_that_fails_is_named(depot: Depot) -> None:
    """In a replay it becomes a dead letter under its reader, in a dry run it is counted."""
    raises = '    if event.order == "o5":\n        raise InvalidEvent("order", "x")\n'
    failing = SERVICE.replace("    parcel.paid += 1", f"{raises}    parcel.paid += 1").replace(
        "from oyez import", "from oyez import InvalidEvent,"
    )
    (depot.root / "shipping.py").write_text(failing)
    code, out, err = await depot.replay(*STATE, "--name", "failing")
    assert code == 1
    assert f"failed: {ROUNDS} of pay, see `oyez dead list shipping`" in out
    assert "pay: event " in err
    sql = "select distinct reader from oyez_dead"
    assert await depot.store.fetch(sql, {}) == [{"reader": "replay:failing"}]
    code, out, err = await depot.replay(*STATE, "--dry-run", "--json")
    found = json.loads(out)
    assert code == 1
    assert found["failed"] == {"pay": ROUNDS}
    assert found["kinds"]["Parcel"]["changed"] == 1
    code, _, err = await depot.replay(*STATE, "--name", "failing", "--swap")
    assert code == 2
    assert f"not swapped: {ROUNDS} events failed in the replay" in err


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "Missing option '--from'"),
        (["--from", "yesterday"], "expected a time as in RFC 3339, a position or"),
        (["--from", "beginning", "--name", "No"], "expected up to 40 of a-z"),
        (["--from", "5", "--swap"], "--swap is for a replay of everything"),
        (["--from", "beginning", "--swap"], "--swap is for handlers that make state"),
        (["--from", "5", "--dry-run", "--announce"], "leave out --announce"),
        (
            ["--from", "5", "--dry-run", "--outward", "--handler", "call"],
            "a dry run undoes everything, and none of these handlers allows that: call",
        ),
        (["--forget"], "add its --name"),
        (["--forget", "--name", "%"], "expected up to 40 of a-z"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    tmp_path: Path, arguments: list[str], why: str
) -> None:
    (tmp_path / "oyez.toml").write_text(TOML.format(store="sqlite:.oyez/shipping.db"))
    (tmp_path / "shipping.py").write_text(SERVICE + OUTWARD)
    ran = subprocess.run(
        [sys.executable, "-m", "oyez", "replay", "shipping", *arguments],
        cwd=tmp_path,
        env={**os.environ, "OYEZ_PROJECT": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert why in ran.stderr
