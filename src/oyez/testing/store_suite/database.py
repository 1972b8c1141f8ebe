"""The database that a test has, and what it writes there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oyez.ports import Announcement, Changes, Claim, DeadLetter, Kept, Parked, Store

DEADLINE = 60.0
"""Seconds that a test waits, at most, for what must come."""

Factory = Callable[[], Store]

INSERT_ITEM = "insert into item (id, n) values (:id, :n)"
"""One row of the test's own."""
SET_COUNTER = "update counter set n = :n where id = 1"


class Database:
    """Where the tests run; each has a database of its own."""

    pytestmark = pytest.mark.asyncio

    binary = "blob"
    """The column type for bytes."""
    big = "integer"
    """The column type for integers of 64 bits."""

    def make(self, tmp_path: Path) -> Factory:
        """What opens nothing yet and gives another `Store` on one and the same database.

        Each test has a database of its own. A store without ``capabilities.processes`` may give the
        same object each time.
        """
        raise NotImplementedError

    def url(self, tmp_path: Path) -> str:
        """What `oyez.stores.connect` makes of that database in a child process.

        Asked for only where several processes can use it.
        """
        raise NotImplementedError("a store for several processes needs StoreSuite.url()")

    @asynccontextmanager
    async def _open(self, tmp_path: Path, count: int = 1) -> AsyncIterator[list[Store]]:
        connect = self.make(tmp_path)
        async with AsyncExitStack() as stack:
            stores = [connect() for _ in range(count)]
            for store in stores:
                stack.push_async_callback(store.close)
                await store.open()
            tables = (
                "create table item (id integer primary key, n integer not null);"
                "create table counter (id integer primary key, n integer not null);"
                "insert into counter values (1, 0)"
            )
            await stores[0].migrate([("000-suite.sql", tables)])
            yield stores


async def take_claim(store: Store, owner: str, partition: int = 0, epoch: int = 1) -> Claim:
    """Let an owner have a partition of the stream ``s``; its claim."""
    sql = """insert into oyez_cursor (stream, partition, owner, epoch)
      values ('s', :partition, :owner, :epoch)"""
    row: Mapping[str, Any] = {"partition": partition, "owner": owner, "epoch": epoch}
    await store.begin().commit(Changes(writes=[(sql, [row])]))
    return Claim(stream="s", partition=partition, owner=owner, epoch=epoch)


async def count_left(store: Store) -> dict[str, int]:
    """Return how many rows commits have left, and the position."""
    sql = """select (select count(*) from item) as item,
      (select count(*) from oyez_outbox) as outbox, (select count(*) from oyez_inbox) as inbox,
      (select count(*) from oyez_dead) as dead,
      (select coalesce(max(position), 0) from oyez_cursor) as position"""
    (row,) = await store.fetch(sql, {})
    return row


async def change_state(store: Store, key: str, **fields: Any) -> None:
    """Commit a change of the state of one key."""
    tx = store.begin()
    try:
        (row,) = await tx.load([("Kind", key)], alone=False)
        cleared = Kept(kind=row.kind, key=row.key, version=row.version)
        await tx.commit(Changes(kept=[msgspec.structs.replace(cleared, **fields)]))
    finally:
        await tx.rollback()


def make_item(number: int) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the write of one row."""
    return (INSERT_ITEM, [{"id": number, "n": number}])


def make_announcement(number: int, due: float = 0.0) -> Announcement:
    """Return an announcement on the stream ``s``."""
    text = str(number)
    return Announcement(stream="s", key="k", headers={"id": text}, data=text.encode(), due=due)


def make_event(event_id: str) -> tuple[str, str, str]:
    """Return what the inbox holds of an event."""
    return (event_id, "/suite", "handler")


def make_parked(event_id: str, **changed: Any) -> Parked:
    """Return a parked event, with fields changed."""
    parked = Parked(
        event_id=event_id,
        source="/suite",
        handler="handler",
        stream="s",
        partition=0,
        position=1,
        chain=None,
        due=1.0,
        attempt=1,
        history=[{"attempt": 1, "at": 0.5, "error": "ValueError: Ü"}],
        key="k",
        headers={"id": event_id, "type": "t"},
        data=b"{}",
    )
    return msgspec.structs.replace(parked, **changed)


def make_letter(event_id: str) -> DeadLetter:
    """Return a dead letter."""
    return DeadLetter(
        event_id=event_id,
        source="/suite",
        type="t",
        handler="handler",
        stream="s",
        partition=0,
        position=4,
        key="k",
        reason="because",
        traceback="Traceback …",
        attempts=3,
        history=[{"attempt": 1}],
        headers={"id": event_id},
        data=b"\x00\xff",
        time=7.0,
    )
