"""The job of `benchmarks.consume_job` as a team writes it with FastStream and SQLAlchemy.

Redis Streams with a consumer group where ``redis-server`` is installed, else FastStream's own test
broker, which is in memory and calls the handler directly. The relay sends 256 outbox rows in one
pipeline and is woken by the handler. The ORM and Core ways have one transaction a message, which is
what FastStream's documentation and SQLAlchemy's lead to; the batch way is what an expert gets out
of them.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from faststream.redis import RedisBroker, StreamSub, TestRedisBroker
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.comparison import Figures
from benchmarks.consume_job import Stopwatch
from benchmarks.machine import Surroundings
from benchmarks.redis_server import installed, redis_server
from oyez.ports import Record

BATCH = 256
LOOK = 0.02
"""Seconds between two looks of the relay at the outbox."""
Job = Callable[[Sequence[Record]], Awaitable[Figures]]


class Payment(BaseModel):
    """The event, with the id that a duplicate is known by."""

    id: str
    account: str
    order: str
    cents: int


class Base(DeclarativeBase):
    """The parent of the mapped classes."""


class Account(Base):
    """The service's own table."""

    __tablename__ = "account"
    id: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]


class Inbox(Base):
    """Events that were handled."""

    __tablename__ = "inbox"
    event_id: Mapped[str] = mapped_column(primary_key=True)


class Outbox(Base):
    """Events to announce."""

    __tablename__ = "outbox"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    body: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


@asynccontextmanager
async def route(here: Surroundings) -> AsyncIterator[tuple[str, dict[str, Job]]]:
    """How the events travel, and the jobs by name; the server runs until the block ends."""
    if not installed():
        text = "FastStream's test broker in memory (redis-server is not installed)"
        yield text, _jobs(here, None)
        return
    async with redis_server(here.fresh("redis")) as url:
        yield "Redis Streams on loopback, appendfsync always", _jobs(here, url)


def _jobs(here: Surroundings, url: str | None) -> dict[str, Job]:
    def job(consumer: type[_Consumer]) -> Job:
        async def turn(records: Sequence[Record]) -> Figures:
            return await consumer(here.fresh("faststream"), url).work_off(records)

        return turn

    jobs = {"ORM": job(_Orm), "Core": job(_Core)}
    if url is not None:
        jobs["Core, batches"] = job(_Batches)
    return jobs


class _Consumer:
    """A broker, an engine, a handler and a relay; subclasses say what the handler does."""

    batch = False

    def __init__(self, folder: Path, url: str | None) -> None:
        self._url = url
        self._broker = RedisBroker(url or "redis://127.0.0.1:1", logger=None)
        self._engine = _engine(folder / "ledger.db")
        self._input, self._output = f"in-{uuid.uuid4()}", f"out-{uuid.uuid4()}"
        self._writing = asyncio.Lock()

    async def work_off(self, records: Sequence[Record]) -> Figures:
        """Fill, consume, relay, check."""
        async with self._engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            accounts = [{"id": f"account-{i}", "cents": 0} for i in range(1000)]
            await connection.execute(sa.insert(Account), accounts)
        self._subscribe()
        events = [_event(record) for record in records]
        through = self._through_memory if self._url is None else self._through_redis
        figures = await through(events)
        async with self._engine.connect() as connection:
            booked = await connection.scalar(sa.select(sa.func.sum(Account.cents)))
        await self._engine.dispose()
        if booked != sum(event["cents"] for event in events):
            raise AssertionError(f"booked {booked} cents")
        return figures

    async def _through_redis(self, events: Sequence[dict[str, Any]]) -> Figures:
        await self._broker.connect()
        await self._publish(events, self._input)
        redis = self._broker._connection
        await redis.xgroup_create(self._input, "ledger", id="0", mkstream=True)
        watch = Stopwatch()
        await self._broker.start()
        await self._relay(len(events))
        figures = watch.figures(len(events))
        assert await redis.xlen(self._output) == len(events)
        await self._broker.stop()
        return figures

    async def _through_memory(self, events: Sequence[dict[str, Any]]) -> Figures:
        async with TestRedisBroker(self._broker):
            watch = Stopwatch()
            relay = asyncio.create_task(self._relay(len(events)))
            for event in events:
                await self._broker.publish(event, stream=self._input)
            await relay
            return watch.figures(len(events))

    def _subscribe(self) -> None:
        source = StreamSub(
            self._input,
            group="ledger",
            consumer="one",
            max_records=BATCH,
            batch=self.batch,
            polling_interval=10,
        )
        subscriber = self._broker.subscriber(stream=source)
        if self.batch:

            @subscriber
            async def consume_batch(events: list[Payment]) -> None:
                async with self._writing:
                    await self._handle(events)
        else:

            @subscriber
            async def consume(event: Payment) -> None:
                async with self._writing:
                    await self._handle([event])

    async def _handle(self, events: list[Payment]) -> None:
        raise NotImplementedError

    async def _relay(self, count: int) -> None:
        while count:
            async with self._engine.connect() as connection:
                query = sa.select(Outbox.seq, Outbox.body).order_by(Outbox.seq).limit(BATCH)
                rows = (await connection.execute(query)).all()
            if rows:
                await self._publish([row.body for row in rows], self._output)
                sent = sa.delete(Outbox).where(Outbox.seq <= rows[-1].seq)
                async with self._writing, self._engine.begin() as connection:
                    await connection.execute(sent)
                count -= len(rows)
            if len(rows) < BATCH and count:
                await asyncio.sleep(LOOK)

    async def _publish(self, events: Sequence[dict[str, Any]], stream: str) -> None:
        if self._url is None:
            for event in events:
                await self._broker.publish(event, stream=stream)
            return
        async with self._broker._connection.pipeline(transaction=False) as pipe:
            for event in events:
                await self._broker.publish(event, stream=stream, pipeline=pipe)
            await pipe.execute()


class _Orm(_Consumer):
    """A session and a transaction a message."""

    async def _handle(self, events: list[Payment]) -> None:
        (event,) = events
        sessions = async_sessionmaker(self._engine)
        try:
            async with sessions() as session, session.begin():
                session.add(Inbox(event_id=event.id))
                account = await session.get_one(Account, event.account)
                account.cents += event.cents
                session.add(Outbox(body=_booked(event)))
        except IntegrityError:
            return  # it was handled before


class _Core(_Consumer):
    """A transaction a message, in SQLAlchemy's Core."""

    async def _handle(self, events: list[Payment]) -> None:
        (event,) = events
        try:
            async with self._engine.begin() as connection:
                await connection.execute(sa.insert(Inbox), {"event_id": event.id})
                await connection.execute(
                    sa.update(Account)
                    .where(Account.id == event.account)
                    .values(cents=Account.cents + event.cents)
                )
                await connection.execute(sa.insert(Outbox), {"body": _booked(event)})
        except IntegrityError:
            return


class _Batches(_Consumer):
    """FastStream's batches, one transaction each, writes by executemany."""

    batch = True

    async def _handle(self, events: list[Payment]) -> None:
        async with self._engine.begin() as connection:
            known = sa.select(Inbox.event_id).where(Inbox.event_id.in_([e.id for e in events]))
            seen = set((await connection.scalars(known)).all())
            fresh = list({e.id: e for e in events if e.id not in seen}.values())
            if not fresh:
                return
            await connection.execute(sa.insert(Inbox), [{"event_id": e.id} for e in fresh])
            await connection.execute(
                sa.update(Account)
                .where(Account.id == sa.bindparam("account"))
                .values(cents=Account.cents + sa.bindparam("added")),
                [{"account": e.account, "added": e.cents} for e in fresh],
            )
            await connection.execute(sa.insert(Outbox), [{"body": _booked(e)} for e in fresh])


def _engine(path: Path) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", connect_args={"timeout": 30})

    @sa.event.listens_for(engine.sync_engine, "connect")
    def durable(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("pragma journal_mode=wal")
        cursor.execute("pragma synchronous=full")
        cursor.close()

    return engine


def _event(record: Record) -> dict[str, Any]:
    payment = Payment.model_validate_json(
        b'{"id":"' + record.headers["id"].encode() + b'",' + (record.data or b"{}")[1:]
    )
    return payment.model_dump()


def _booked(event: Payment) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "account": event.account, "order": event.order}
