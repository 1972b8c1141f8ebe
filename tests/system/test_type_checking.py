"""What a type checker says of a team's handlers: nothing when they are right, the line when not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HANDLERS = """
from collections.abc import AsyncIterator
from sqlalchemy.ext.asyncio import AsyncSession
from oyez import After, Command, Context, Event, Saga, Service, Transaction, View, applies
from oyez.saga import end, starts, step

class Placed(Event, type="shop.placed", key="order"):
    order: str

class Paid(Event, type="shop.paid", key="order"):
    order: str

class Provider:
    async def charge(self, key: str, order: str) -> bool:
        return True

service = Service("payments")

@service.provides
async def provider() -> AsyncIterator[Provider]:
    yield Provider()

@service.on(Placed)
async def charge(
    event: Placed, context: Context, provider: Provider, after: After
) -> Paid | None:
    if not await provider.charge(context.idempotency_key, event.order):
        after.publish(Paid(order=event.order), delay=5.0, key="1")
        return None
    after.execute(
        "insert into payment values (:id, :order, :at)",
        id=after.new_id(), order=event.order, at=after.time,
    )
    return Paid(order=event.order)

@service.on(Placed)
def charge_on_a_thread(event: Placed, after: After) -> Paid:
    number: int = after.execute("select 1")  # wrong: it returns nothing
    row = after.fetch_one("select 1")  # wrong: it can't read
    after.execute(event)  # wrong: no SQL
    return Paid(order=event.order)

@service.on(Placed, batch=True)
async def count(events: list[Placed], tx: Transaction) -> None:
    tx.execute("insert into seen values (:n)", n=len(events))

@service.on(Placed)
async def keep(event: Placed, db: AsyncSession, tx: Transaction) -> None:
    await db.flush()
    await tx.fetch("select 1")

@service.view
class Orders(View, table="orders", key="order"):
    order: str
    payments: int = 0

    @applies
    def paid(self, event: Paid) -> None:
        self.payments += 1

@service.view(allow={"E21": "it begins with what is there"})
class Sums(View, table="sums", key="order"):
    order: str

    @applies
    def paid(self, event: Paid) -> None:
        self.cents += 1  # wrong: no such field

class Charge(Command, type="shop.charge", key="order", to="payments"):
    order: str

@service.saga(allow={"E10": "a person answers"})
class Fulfilment(Saga, key="order", ends=("done", "undone")):
    order: str = ""

    @starts
    def placed(self, event: Placed) -> None:
        self.order = event.order

    @step(done=Paid, within=60)
    def charge(self) -> Charge:
        return Charge(order=self.order)

    @end("done")
    def over(self) -> None: ...

async def look(key: str) -> int:
    row = await service.read(Orders, key)
    return row.payments if row is not None else 0

async def by_hand(event: Placed, tx: Transaction) -> None:
    await charge(event, tx, Provider(), After(tx))  # wrong: no context
"""


def test_handlers_keep_their_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "payments.py").write_text(HANDLERS)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "payments.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    wrong = [number for number, line in enumerate(HANDLERS.splitlines(), 1) if "# wrong" in line]
    found = {int(number) for number in re.findall(r"^payments\.py:(\d+): error", done.stdout, re.M)}
    assert found == set(wrong), done.stdout
