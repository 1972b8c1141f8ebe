"""`oyez migrate` by real processes: each change once, and services that start without the right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from oyez.config import load
from oyez.project import Project
from oyez.testing.ticks import until
from servers import server

TOML = """
[system]
name = "till"

[services.desk]
app = "desk:service"
store = "{store}"

[services.ledger]
app = "ledger:service"
"""
DESK = """
from oyez import Event, Service, Transaction

class Sold(Event, type="till.sold", key="sale"):
    sale: str

service = Service("desk", migrations="migrations", publishes=(Sold,))

@service.on(Sold)
def note(event: Sold, tx: Transaction) -> None:
    tx.execute("insert into sale values (:sale)", sale=event.sale)
"""
LEDGER = """
from oyez import Service

service = Service("ledger", migrations="entries")
"""
PROCESSES = 4


class Till:
    """A system with a service that has migrations, and a second one."""

    def __init__(self, root: Path, store: str) -> None:
        self.root = root
        self.configure(store)
        (root / "desk.py").write_text(DESK)
        (root / "ledger.py").write_text(LEDGER)
        for folder in ("migrations", "entries"):
            (root / folder).mkdir()
        self.write("migrations/001_sale.sql", "create table sale (id varchar(40));")

    def configure(self, store: str) -> None:
        self.write("oyez.toml", TOML.format(store=store))

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "oyez", *arguments],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def oyez(self, *arguments: str, code: int = 0) -> str:
        """Run a command that must end with ``code``; its output, or its errors if not 0 or 1."""
        process = self.start(*arguments)
        said, errors = process.communicate(timeout=60)
        assert process.returncode == code, said + errors
        assert "Traceback" not in errors
        return errors if code == 2 else said

    def found(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """What `oyez migrate` says of each service, by its name."""
        report = json.loads(self.oyez("migrate", *arguments, "--json", code=code))
        assert report["ok"] == (code == 0)
        return {each.pop("service"): each for each in report["services"]}

    async def fetch(self, sql: str) -> list[dict[str, Any]]:
        async with Project(load(self.root)).opened_store("desk") as store:
            return list(await store.fetch(sql, {}))


@contextmanager
def running(till: Till) -> Iterator[None]:
    """`oyez run desk --no-migrate` runs inside the block, and drains at its end."""
    process = till.start("run", "desk", "--no-migrate")
    try:
        yield
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    finally:
        process.kill()


@pytest.fixture
def till(tmp_path: Path, store_url: str) -> Till:
    return Till(tmp_path, store_url)


async def test_what_is_due_is_told_then_made_then_not_due(till: Till) -> None:
    sale = {"what": "migration", "name": "001_sale.sql"}
    tables = {"what": "tables", "name": "new"}
    for _ in range(2):
        found = till.found("desk", "--check", code=1)
        assert found == {"desk": {"due": [tables, sale], "error": ""}}
    assert till.oyez("migrate") == (
        "desk: made: Oyez's tables (new), migration 001_sale.sql\n"
        "ledger: made: Oyez's tables (new)\n"
    )
    assert till.oyez("migrate", "--check") == "desk: nothing is due\nledger: nothing is due\n"
    till.write("migrations/002_note.sql", "create table note (id integer);")
    told = till.oyez("migrate", "--check", code=1)
    assert told == "desk: due: migration 002_note.sql\nledger: nothing is due\n"
    assert set(till.found()) == {"desk", "ledger"}
    assert await till.fetch("select * from note") == []
    assert till.oyez("migrate", "desk") == "desk: nothing is due\n"


async def test_of_several_at_once_one_makes_each_change(till: Till) -> None:
    for number in range(2, 8):
        till.write(f"migrations/00{number}_more.sql", f"insert into sale values ('{number}');")
    started = [till.start("migrate", "desk") for _ in range(PROCESSES)]
    for process in started:
        said, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, ""), said
    rows = await till.fetch("select id from sale order by id")
    assert [row["id"] for row in rows] == ["2", "3", "4", "5", "6", "7"]


async def test_a_service_that_may_not_migrate_starts_once_nothing_is_due(till: Till) -> None:
    told = till.oyez("run", "desk", "--no-migrate", code=2)
    assert told == (
        "oyez: the store of desk lacks Oyez's tables (new), migration 001_sale.sql: run "
        "`oyez migrate desk` first, as a user who may change its tables\n"
    )
    assert [each["name"] for each in till.found("desk", "--check", code=1)["desk"]["due"]] == [
        "new",
        "001_sale.sql",
    ]
    till.oyez("migrate", "desk")
    with running(till):
        till.oyez("publish", "till.sold", '{"sale": "1"}')
        await until(lambda: till.fetch("select id from sale"))


def test_one_that_fails_is_told_and_stops_no_other(tmp_path: Path) -> None:
    till = Till(tmp_path, "sqlite:desk.db")
    till.write("migrations/002_note.sql", "create tabel note (id integer);")
    found = till.found(code=1)
    assert found["desk"]["error"].startswith("migration 002_note.sql: ")
    assert found["ledger"]["error"] == ""
    names = [each["name"] for each in till.found("--check", code=1)["desk"]["due"]]
    assert names == ["002_note.sql"]
    till.write("desk.py", "import nothing_there")
    found = till.found(code=1)
    assert "nothing_there" in found["desk"]["error"]
    assert found["ledger"] == {"due": [], "error": ""}
    told = till.oyez("migrate", "nobody", code=2)
    assert "there is no service 'nobody'; there are: desk, ledger" in told


async def test_a_user_without_the_right_to_change_tables_runs_the_service(tmp_path: Path) -> None:
    place, schema = server("postgresql"), f"test_{uuid4().hex[:12]}"
    role, mark = f"{schema}_run", "&" if "?" in place.url else "?"
    till = Till(tmp_path, f"{place.url}{mark}schema={schema}")
    own = urlsplit(place.url)._replace(netloc=f"{role}:pw@{place.host}:{place.port}")
    admin = await asyncpg.connect(place.url)
    try:
        await admin.execute(f"create role {role} login password 'pw'")
        till.oyez("migrate", "desk")
        await admin.execute(
            f"grant usage on schema {schema} to {role};"
            f"grant select, insert, update, delete on all tables in schema {schema} to {role};"
            f"alter default privileges in schema {schema}"
            f" grant select, insert, update, delete on tables to {role}"
        )
        till.configure(f"{urlunsplit(own)}{mark}schema={schema}")
        till.write("migrations/002_note.sql", "create table note (id integer);")
        assert "lacks migration 002_note.sql" in till.oyez("run", "desk", "--no-migrate", code=2)
        assert "permission denied" in till.found("desk", code=1)["desk"]["error"]
        till.configure(f"{place.url}{mark}schema={schema}")
        till.oyez("migrate", "desk")
        till.configure(f"{urlunsplit(own)}{mark}schema={schema}")
        with running(till):
            till.oyez("publish", "till.sold", '{"sale": "1"}')
            await until(lambda: till.fetch("select id from sale"))
    finally:
        await admin.execute(f'drop schema if exists "{schema}" cascade')
        await admin.execute(f"drop owned by {role}; drop role {role}")
        await admin.close()
