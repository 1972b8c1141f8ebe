"""The job of `benchmarks.server_job` by hand: nats-py or confluent-kafka, and asyncpg.

A loop takes what has arrived, up to 256 events, and commits them by a statement for each table; the
events are acknowledged after that. A relay beside it, on a connection of its own, reads the outbox,
publishes, waits for the confirmations and deletes by range, which is safe with one writer alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import asyncpg
import msgspec

from benchmarks.broker_log import PARTITIONS
from benchmarks.embedded_append import Paid
from benchmarks.server_job import Job
from oyez.partitioning import partition_of

BATCH = 256
_TABLES = """create table inbox (event_id text primary key);
create table outbox (seq bigint generated always as identity primary key, key text not null,
  headers bytea not null, data bytea not null);"""
_FRESH = "insert into inbox select unnest($1::text[]) on conflict do nothing returning event_id"
_UPDATE = """update account a set cents = a.cents + e.cents from (select account,
  sum(cents)::bigint as cents from unnest($1::text[], $2::bigint[]) u (account, cents)
  group by account) e where a.id = e.account"""
_ANNOUNCE = """insert into outbox (key, headers, data)
  select * from unnest($1::text[], $2::bytea[], $3::bytea[])"""
_READ = "select seq, key, headers, data from outbox order by seq limit 512"
_SENT = "delete from outbox where seq <= $1"

_paid = msgspec.json.Decoder(Paid).decode
_encode = msgspec.json.Encoder().encode
_headers = msgspec.json.Decoder(dict[str, str]).decode

Message = tuple[str, bytes]
"""Event id and data."""
Row = tuple[str, dict[str, str], bytes]
"""Key, headers and data of an event to announce."""


class Client(Protocol):
    """A broker's client."""

    async def take(self) -> Sequence[Message]:
        """Wait for events, and return up to 256."""
        ...

    async def acknowledge(self) -> None:
        """Acknowledge what was taken last."""
        ...

    async def publish(self, rows: Sequence[Row]) -> None:
        """Return when all are confirmed."""
        ...


async def work(job: Job, started: Callable[[], None], ended: Callable[[], None]) -> None:
    """Do the job."""
    consuming, relaying = await _connect(job), await _connect(job)
    await consuming.execute(_TABLES)
    client = await CLIENTS[job.kind](job)
    committed = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        consumer = group.create_task(_consume(client, consuming, committed))
        started()
        sent = 0
        while not job.count or sent < job.count:
            sent += await _relay(client, relaying, committed)
        ended()
        consumer.cancel()


async def _consume(client: Client, connection: Any, committed: asyncio.Event) -> None:
    while True:
        batch = dict(await client.take())
        if not batch:
            continue
        async with connection.transaction():
            fresh = [row[0] for row in await connection.fetch(_FRESH, list(batch))]
            events = [_paid(batch[event_id]) for event_id in fresh]
            accounts = [event.account for event in events]
            await connection.execute(_UPDATE, accounts, [event.cents for event in events])
            headers = [_encode({"id": f"{id_}-booked", "type": "bench.booked"}) for id_ in fresh]
            data = [_encode({"account": each.account, "order": each.order}) for each in events]
            await connection.execute(_ANNOUNCE, accounts, headers, data)
        committed.set()
        await client.acknowledge()


async def _relay(client: Client, connection: Any, committed: asyncio.Event) -> int:
    committed.clear()
    rows = await connection.fetch(_READ)
    if not rows:
        await committed.wait()
        return 0
    await client.publish([(row["key"], _headers(row["headers"]), row["data"]) for row in rows])
    await connection.execute(_SENT, rows[-1]["seq"])
    return len(rows)


async def _connect(job: Job) -> Any:
    connection = await asyncpg.connect(job.postgresql)
    await connection.execute(f'set search_path = "{job.system}"')
    return connection


# -- the brokers ----------------------------------------------------------------------------------


async def _nats(job: Job) -> Client:
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig

    client = await nats.connect(job.broker)
    jetstream = client.jetstream(publish_async_max_pending=4_000)
    source = await jetstream.pull_subscribe(
        f"{job.source}.*",
        durable="ledger",
        stream=job.source.replace(".", "_"),
        config=ConsumerConfig(ack_policy=AckPolicy.ALL, max_ack_pending=4 * BATCH),
    )

    class Nats:
        last: Any

        async def take(self) -> Sequence[Message]:
            try:
                messages = await source.fetch(BATCH, timeout=60)
            except nats.errors.TimeoutError:
                return ()
            self.last = messages[-1]
            return [((each.headers or {})["ce-id"], each.data) for each in messages]

        async def acknowledge(self) -> None:
            await self.last.ack()

        async def publish(self, rows: Sequence[Row]) -> None:
            confirmed = [
                await jetstream.publish_async(
                    f"{job.target}.{partition_of(key, PARTITIONS)}",
                    data,
                    headers={f"ce-{name}": value for name, value in headers.items()},
                )
                for key, headers, data in rows
            ]
            await asyncio.gather(*confirmed)

    return Nats()


async def _kafka(job: Job) -> Client:
    from confluent_kafka import Consumer, Producer

    settings = {"bootstrap.servers": job.broker.removeprefix("kafka://")}
    own = {"group.id": job.system, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    consumer = Consumer({**settings, **own})
    consumer.subscribe([job.source])
    producer = Producer({**settings, "acks": "all", "enable.idempotence": True, "linger.ms": 0})
    loop = asyncio.get_running_loop()

    def poll() -> None:
        while True:
            producer.poll(0.1)

    threading.Thread(target=poll, daemon=True).start()

    class Kafka:
        def _take(self) -> Sequence[Message]:
            found = consumer.consume(1, 0.5) + consumer.consume(BATCH - 1, 0)
            messages = [each for each in found if each.error() is None]
            return [(_id_of(each.headers()), each.value() or b"") for each in messages]

        async def take(self) -> Sequence[Message]:
            return await asyncio.to_thread(self._take)

        async def acknowledge(self) -> None:
            consumer.commit(asynchronous=True)

        async def publish(self, rows: Sequence[Row]) -> None:
            sent = loop.create_future()
            left = len(rows)

            def report(error: object, _: object) -> None:
                nonlocal left
                assert error is None, error
                left -= 1
                if not left:
                    loop.call_soon_threadsafe(sent.set_result, None)

            for key, headers, data in rows:
                named: list[tuple[str, str | bytes | None]] = [
                    (f"ce_{name}", value) for name, value in headers.items()
                ]
                partition = partition_of(key, PARTITIONS)
                producer.produce(job.target, data, key.encode(), partition, report, None, 0, named)
            await sent

    return Kafka()


def _id_of(headers: Any) -> str:
    found: bytes = dict(headers)["ce_id"]
    return found.decode()


CLIENTS: dict[str, Callable[[Job], Awaitable[Client]]] = {"nats": _nats, "kafka": _kafka}
