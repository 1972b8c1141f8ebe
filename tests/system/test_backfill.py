"""A view whose history retention has deleted is filled by a backfill, while its owner goes on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import apsw
import asyncpg
import pytest

from oyez import Event, brokers, stores
from oyez.ambient import SystemAmbient
from oyez.errors import OyezError
from oyez.ports import Broker, Row, Store
from oyez.testing.ticks import until
from oyez.transaction import Announcer, Origin, UnitOfWork
from servers import server

CUSTOMERS = 1_800
TOML = """[system]
name = "shop"
broker = "embedded:.oyez/events.db"
partitions = 4

[services.customers]
app = "customers:service"
store = "{customers}"
lease = 2.0

[services.notifications]
app = "notifications:service"
store = "{notifications}"
lease = 2.0
"""
EVENTS = """
from oyez import Event

class CustomerKnown(Event, type="shop.customer.known", key="customer_id"):
    customer_id: str
    name: str
    times: int

class CustomerNamed(Event, type="shop.customer.named", key="customer_id"):
    customer_id: str
    name: str
    times: int

class CustomerLeft(Event, type="shop.customer.left", key="customer_id"):
    customer_id: str
"""
OWNER = """
import asyncio, os
from facts import CustomerKnown, CustomerLeft, CustomerNamed
from oyez import Service, Transaction

service = Service("customers", migrations="migrations", publishes=(CustomerNamed, CustomerLeft))

@service.backfill(CustomerKnown)
async def customers(tx: Transaction, after: str) -> list[CustomerKnown]:
    if "SLOW" in os.environ:
        await asyncio.sleep(0.3)
    rows = await tx.fetch(
        "select id, name, times from customer where id > :after order by id limit 200",
        after=after,
    )
    return [CustomerKnown(customer_id=r["id"], name=r["name"], times=r["times"]) for r in rows]
"""
ASKER = """
from facts import CustomerKnown, CustomerLeft, CustomerNamed
from oyez import GONE, Gone, Service, View, applies

class CustomerNames(View, table="customer_names", key="customer_id"):
    customer_id: str
    name: str = ""
    times: int = 0

    @applies
    def known(self, event: CustomerKnown) -> None:
        self.take(event)

    @applies
    def named(self, event: CustomerNamed) -> None:
        self.take(event)

    @applies
    def left(self, event: CustomerLeft) -> Gone:
        return GONE

service = Service("notifications")
service.view(CustomerNames)
"""
MIGRATION = """
create table customer (id text primary key, name text not null, times integer not null);
"""


class CustomerNamed(Event, type="shop.customer.named", key="customer_id"):
    customer_id: str
    name: str
    times: int


class CustomerLeft(Event, type="shop.customer.left", key="customer_id"):
    customer_id: str


class Shop:
    """The system of a test: its files, its broker, the stores of both services."""

    def __init__(self, root: Path, broker: Broker, owner: Store, asker: Store) -> None:
        self.root = root
        self.broker = broker
        self.owner = owner
        self.asker = asker
        self._announcer = Announcer("shop", "customers", SystemAmbient())

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

    async def oyez(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run a command to its end; return the exit code and both outputs."""
        began = self.start(*arguments, **environment)
        out, err = await asyncio.to_thread(began.communicate, timeout=60)
        return began.returncode, out, err

    @contextmanager
    def serving(self, service: str) -> Iterator[None]:
        """A service, until the block ends."""
        with (self.root / f"{service}.log").open("a") as log:
            running = subprocess.Popen(
                [sys.executable, "-m", "oyez", "run", service],
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

    async def change(self, sql: str, event: Event, **parameters: Any) -> None:
        """A change of the owner's, as its HTTP side makes it in a process of its own."""
        unit = UnitOfWork(self.owner, self._announcer)
        try:
            tx = unit.transaction(Origin())
            tx.execute(sql, **parameters)
            tx.publish(event)
            await unit.commit()
        finally:
            await unit.rollback()

    async def name(self, number: int, times: int) -> None:
        """Name a customer."""
        one, name = f"c{number:05}", f"name {times}"
        await self.change(
            "insert into customer (id, name, times) values (:id, :name, :times)"
            " on conflict (id) do update set name = excluded.name, times = excluded.times",
            CustomerNamed(customer_id=one, name=name, times=times),
            id=one,
            name=name,
            times=times,
        )

    async def forget(self, number: int) -> None:
        """Delete a customer."""
        one = f"c{number:05}"
        await self.change(
            "delete from customer where id = :id", CustomerLeft(customer_id=one), id=one
        )

    async def go_on(self) -> None:
        """Name, rename and delete customers until it is cancelled."""
        choice, times = random.Random(20261129), 1
        while True:
            number, times = choice.randrange(CUSTOMERS + 200), times + 1
            if times % 10:
                await self.name(number, times)
            else:
                await self.forget(number)
            await asyncio.sleep(0.002)

    async def published(self) -> None:
        """Return when the outbox of the owner is empty."""

        async def empty() -> bool:
            (row,) = await self.owner.fetch("select count(*) as events from oyez_outbox", {})
            return not row["events"]

        await until(empty, 60.0, lambda: (self.root / "customers.log").read_text()[-2_000:])

    async def delete_history(self) -> None:
        """Let retention delete what was published until now, but for the last 40 records."""
        with apsw.Connection(str(self.root / ".oyez" / "events.db")) as file:
            file.execute("update batch set time = 1 where last <= ?", (CUSTOMERS // 4 - 10,))
            file.execute("update housekeeping set due = 0")

        async def deleted() -> bool:
            return all(await self.broker.starts("shop.customers"))

        await until(deleted, 60.0)

    async def rows(self) -> tuple[list[Row], list[Row]]:
        """The rows of the owner, and those of the view."""
        mine = "select id as customer_id, name, times from customer order by id"
        theirs = "select customer_id, name, times from customer_names order by customer_id"
        return await self.owner.fetch(mine, {}), await self.asker.fetch(theirs, {})


@pytest.fixture(params=["sqlite", "postgresql"])
async def shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shop]:
    """A system whose owner has some customers, none of which is in the stream any more."""
    names = ("customers", "notifications")
    urls = {name: f"sqlite:.oyez/{name}.db" for name in names}
    schemas = {name: f"test_{uuid4().hex[:12]}" for name in names}
    place = None
    if request.param == "postgresql":
        place = server("postgresql")
        joint = "&" if "?" in place.url else "?"
        urls = {name: f"{place.url}{joint}schema={schemas[name]}" for name in names}
    (tmp_path / "oyez.toml").write_text(TOML.format(**urls))
    for name, text in (("facts", EVENTS), ("customers", OWNER), ("notifications", ASKER)):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_customer.sql").write_text(MIGRATION)
    ambient = SystemAmbient()
    broker = brokers.connect("embedded:.oyez/events.db", ambient, root=tmp_path)
    owner, asker = (stores.connect(urls[name], ambient, root=tmp_path) for name in names)
    await broker.open()
    await broker.create("shop.customers", 4)
    await owner.open()
    await asker.open()
    system = Shop(tmp_path, broker, owner, asker)
    try:
        yield system
    finally:
        await broker.close()
        await owner.close()
        await asker.close()
        if place is not None:
            connection = await asyncpg.connect(place.url)
            for schema in schemas.values():
                await connection.execute(f"drop schema if exists {schema} cascade")
            await connection.close()


async def there(store: Store, sql: str) -> bool:
    """Whether a query of a service's tables has an answer with rows."""
    try:
        return bool(await store.fetch(sql, {}))
    except OyezError:
        return False  # the service has not made them yet


@pytest.mark.timeout(240)
async def test_a_view_begins_where_its_history_is_gone(shop: Shop) -> None:
    backfill = ("backfill", "customers", "CustomerKnown", "--for", "notifications")
    begin = ("view", "begin", "notifications", "customer_names")
    with shop.serving("customers"):
        mark = "select 1 from oyez_migration where name like '%0001%'"
        await until(lambda: there(shop.owner, mark), 30.0)
        for number in range(CUSTOMERS):
            await shop.name(number, 1)
        await shop.published()
        await shop.delete_history()
    with shop.serving("notifications"):
        made = "select 1 from oyez_cursor where reader = 'view:customer_names@1'"
        await until(lambda: there(shop.asker, made), 30.0)
        code, _, said = await shop.oyez(*begin)
        assert code == 1
        assert "`oyez backfill customers shop.customer.known --for notifications`" in said
        _, out, _ = await shop.oyez("view", "list", "notifications", "--json")
        assert json.loads(out)["views"][0]["missing"] > 0
        with shop.serving("customers"):
            going_on = asyncio.create_task(shop.go_on())
            try:
                await kill_midway(shop, *backfill)
                code, _, said = await shop.oyez(*begin)
                assert (code, "let `oyez backfill" in said) == (1, True)
                code, out, said = await shop.oyez(*backfill, "--json")
                assert code == 0, said
                assert "goes on after 'c0" in said
                value = json.loads(out)
                assert value["event"] == "shop.customer.known"
                assert CUSTOMERS * 0.8 < value["announced"] < CUSTOMERS + 200

                async def begun() -> bool:
                    code, _, said = await shop.oyez(*begin)
                    assert code == 0 or "wait in the outbox of customers" in said, said
                    return code == 0

                await until(begun, 60.0)
            finally:
                going_on.cancel()
            await shop.published()

            async def equal() -> bool:
                mine, theirs = await shop.rows()
                return mine == theirs

            await until(equal, 60.0, lambda: (shop.root / "notifications.log").read_text()[-3000:])
        _, out, _ = await shop.oyez("view", "list", "notifications", "--json")
        (listed,) = json.loads(out)["views"]
        assert (listed["missing"], listed["dead"]) == (0, 0)
        code, out, _ = await shop.oyez(*begin)
        assert (code, out) == (0, "customer_names lacks nothing of its history\n")
        code, _, said = await shop.oyez("view", "verify", "notifications", "customer_names")
        assert (code, "can't be verified: retention has deleted" in said) == (1, True)
    mine, _ = await shop.rows()
    assert max(row["times"] for row in mine) > 1


async def kill_midway(shop: Shop, *command: str) -> None:
    """Kill a backfill that has announced a part."""
    child = shop.start(*command, SLOW="1")
    part = """select 1 from oyez_migration where name like 'oyez:backfill:%'
     and digest not like '%"announced":0%'"""
    try:
        await until(lambda: there(shop.owner, part), 30.0)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
