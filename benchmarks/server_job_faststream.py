"""The job of `benchmarks.server_job` with FastStream and SQLAlchemy Core, 8 workers.

A transaction a message, which is what FastStream's documentation and SQLAlchemy's lead to, on 8
messages at once; a message is acknowledged after it. The relay sends 256 outbox rows at once, is
woken by the handlers and deletes what was confirmed.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import sqlalchemy as sa
from faststream import AckPolicy, Header
from faststream.kafka import KafkaBroker, KafkaPublishMessage
from faststream.nats import JStream, NatsBroker, PullSub
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.broker_log import PARTITIONS
from benchmarks.server_job import Job
from oyez.partitioning import partition_of

BATCH = 256
WORKERS = 8

_metadata = sa.MetaData()
_account = sa.Table(
    "account",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("cents", sa.BigInteger, nullable=False),
)
_inbox = sa.Table("inbox", _metadata, sa.Column("event_id", sa.Text, primary_key=True))
_outbox = sa.Table(
    "outbox",
    _metadata,
    sa.Column("seq", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
)

Handle = Callable[[str, "Payment"], Awaitable[None]]
Publish = Callable[[Sequence[dict[str, Any]]], Awaitable[None]]


class Payment(BaseModel):
    """The event."""

    account: str
    order: str
    cents: int


async def work(job: Job, started: Callable[[], None], ended: Callable[[], None]) -> None:
    """Do the job."""
    engine = create_async_engine(
        job.postgresql.replace("postgresql://", "postgresql+asyncpg://"),
        pool_size=WORKERS + 1,
        connect_args={"server_settings": {"search_path": job.system}},
    )
    async with engine.begin() as connection:
        await connection.run_sync(_metadata.create_all)
    committed = asyncio.Event()

    async def handle(event_id: str, event: Payment) -> None:
        booked = {"id": str(uuid.uuid4()), "account": event.account, "order": event.order}
        try:
            async with engine.begin() as connection:
                await connection.execute(sa.insert(_inbox), {"event_id": event_id})
                await connection.execute(
                    sa.update(_account)
                    .where(_account.c.id == event.account)
                    .values(cents=_account.c.cents + event.cents)
                )
                await connection.execute(sa.insert(_outbox), {"body": booked})
        except IntegrityError:
            return  # it was handled before
        committed.set()

    broker, publish = (_nats if job.kind == "nats" else _kafka)(job, handle)
    await broker.start()
    started()
    sent = 0
    while not job.count or sent < job.count:
        committed.clear()
        async with engine.connect() as connection:
            query = sa.select(_outbox.c.seq, _outbox.c.body).order_by(_outbox.c.seq).limit(BATCH)
            rows = (await connection.execute(query)).all()
        if not rows:
            await committed.wait()
            continue
        await publish([row.body for row in rows])
        async with engine.begin() as connection:
            await connection.execute(
                sa.delete(_outbox).where(_outbox.c.seq.in_([row.seq for row in rows]))
            )
        sent += len(rows)
    ended()
    await broker.stop()
    await engine.dispose()


def _nats(job: Job, handle: Handle) -> tuple[Any, Publish]:
    broker = NatsBroker(job.broker, logger=None)
    target = job.target.replace(".", "_")

    @broker.subscriber(
        f"{job.source}.*",
        stream=JStream(job.source.replace(".", "_"), declare=False),
        durable="ledger",
        pull_sub=PullSub(batch_size=BATCH),
        max_workers=WORKERS,
    )
    async def consume(event: Payment, event_id: str = Header("ce-id")) -> None:
        await handle(event_id, event)

    async def publish(bodies: Sequence[dict[str, Any]]) -> None:
        await asyncio.gather(
            *(
                broker.publish(
                    body,
                    f"{job.target}.{partition_of(body['account'], PARTITIONS)}",
                    stream=target,
                )
                for body in bodies
            )
        )

    return broker, publish


def _kafka(job: Job, handle: Handle) -> tuple[Any, Publish]:
    broker = KafkaBroker(job.broker.removeprefix("kafka://"), logger=None, acks="all")

    @broker.subscriber(
        job.source,
        group_id=job.system,
        auto_offset_reset="earliest",
        max_workers=WORKERS,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def consume(event: Payment, event_id: str = Header("ce_id")) -> None:
        await handle(event_id, event)

    async def publish(bodies: Sequence[dict[str, Any]]) -> None:
        messages = [KafkaPublishMessage(body, key=body["account"].encode()) for body in bodies]
        await broker.publish_batch(*messages, topic=job.target)

    return broker, publish
