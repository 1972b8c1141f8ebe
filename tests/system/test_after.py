"""A process is killed between a slow call and the commit that records it, or just behind that.

The call is made again where the commit was not reached, under the same key. What the handler left
to the commit is there once all the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from oyez.config import load
from oyez.ports import BEGINNING
from oyez.project import Project

CONFIG = """
[system]
name = "bank"

[services.payments]
app = "payments:service"
lease = 1.0
"""
PAYMENTS = """
import json
import os
import pathlib
import signal

from oyez import After, Context, Event, Service
from oyez.stores.sqlite import SqliteTransaction

class Ordered(Event, type="bank.ordered", key="order"):
    order: str

class Paid(Event, type="bank.paid", key="order"):
    order: str
    handler: str

class Booked(Event, type="bank.booked", key="order"):
    order: str
    handler: str

service = Service("payments", migrations="migrations", publishes=(Ordered,))

def die(*moment):
    died = pathlib.Path("died")
    if list(moment) == json.loads(os.environ["DIES"]) and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)

def call_the_provider(context):
    with open("calls", "a") as calls:
        calls.write(f"{context.handler} {context.idempotency_key}\\n")

def leave(event, context, after):
    after.execute(
        "insert into payment values (:order, :handler)", order=event.order, handler=context.handler
    )
    after.publish(Booked(order=event.order, handler=context.handler))
    die(context.handler, "before it returns")
    return Paid(order=event.order, handler=context.handler)

@service.on(Ordered)
async def awaits(event: Ordered, context: Context, after: After) -> Paid:
    call_the_provider(context)
    return leave(event, context, after)

@service.on(Ordered)
def blocks(event: Ordered, context: Context, after: After) -> Paid:
    call_the_provider(context)
    return leave(event, context, after)

commits = SqliteTransaction.commit

async def commit(self, changes):
    (settled,) = changes.settled or [None]
    if settled is not None:
        die(settled.handler, "before its commit")
    await commits(self, changes)
    if settled is not None:
        die(settled.handler, "after its commit")

SqliteTransaction.commit = commit
"""


@pytest.mark.parametrize("moment", ["before it returns", "before its commit", "after its commit"])
@pytest.mark.parametrize("handler", ["awaits", "blocks"])
async def test_what_a_handler_leaves_to_the_commit_is_there_once(
    tmp_path: Path, handler: str, moment: str
) -> None:
    _write(tmp_path)
    with _running(tmp_path, handler, moment) as process:
        command = [sys.executable, "-m", "oyez", "publish", "bank.ordered", '{"order": "1"}']
        done = await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, timeout=60)
        assert done.returncode == 0
        assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL
    with _running(tmp_path, handler, moment) as process:
        await _until(tmp_path, lambda found: len(found) >= 4)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0
    everything = {(kind, each) for kind in ("paid", "booked") for each in ("awaits", "blocks")}
    assert await _announced(tmp_path) == Counter(everything)
    with closing(sqlite3.connect(tmp_path / ".oyez" / "payments.db")) as store:
        payments = store.execute("select order_id, handler from payment order by handler")
        assert payments.fetchall() == [("1", "awaits"), ("1", "blocks")]
        parked = store.execute("select count(*) from oyez_inbox where state > 0").fetchone()
        assert parked == (0,)
    calls = Counter((tmp_path / "calls").read_text().splitlines())
    again = 1 if moment == "after its commit" else 2
    assert {call.split()[0]: count for call, count in calls.items()} == {
        each: again if each == handler else 1 for each in ("awaits", "blocks")
    }


def _write(folder: Path) -> None:
    (folder / "migrations").mkdir()
    (folder / "oyez.toml").write_text(CONFIG)
    (folder / "payments.py").write_text(PAYMENTS)
    # No constraint keeps a second row out.
    sql = "create table payment (order_id text, handler text)"
    (folder / "migrations" / "001_payment.sql").write_text(sql)


@contextmanager
def _running(folder: Path, *dies: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "oyez", "run", "payments"],
            cwd=folder,
            env={**os.environ, "DIES": json.dumps(dies)},
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def _until(folder: Path, condition: Callable[[Counter[tuple[str, str]]], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition(await _announced(folder)):
            await asyncio.sleep(0.02)  # between two looks at a condition with a deadline


async def _announced(folder: Path) -> Counter[tuple[str, str]]:
    """How many events of each type and handler are on the broker, by their ids."""
    found: dict[str, tuple[str, str]] = {}
    async with Project(load(folder)).opened_broker(create=True) as broker:
        for partition, end in enumerate(await broker.ends("bank.payments")):
            if end == BEGINNING:
                continue
            async for batch in broker.read("bank.payments", partition, BEGINNING):
                for record in batch.records:
                    kind = record.headers["type"].removeprefix("bank.")
                    if kind != "ordered":
                        data = json.loads(record.data or b"")
                        found[record.headers["id"]] = (kind, data["handler"])
                if batch.records[-1].position >= end:
                    break
    return Counter(found.values())
