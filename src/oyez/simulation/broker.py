"""A broker in memory that does to its clients what real ones do.

`Log` is the broker itself, with its records; `SimBroker` a client of it, an `oyez.ports.Broker`. It
may be slow, be out of reach, take records and lose its confirmation, take a part of them, take one
twice, hand them out in smaller batches or again, and leave a partition unread for a while, each as
the kind of broker does that it stands for. It never changes the order of a partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import msgspec

from oyez.ambient import Ambient
from oyez.brokers.kit.heads import Heads
from oyez.brokers.kit.streams import Place, Streams, behind, check_count, partitions_of
from oyez.errors import BrokerUnavailable
from oyez.ports import BEGINNING, Batch, Capabilities, Finding, Position, Record
from oyez.simulation.world import Node, broker_error

BATCH = 256
"""The limit of records in one batch."""


class Kind(msgspec.Struct, frozen=True):
    """What a kind of broker does to its clients."""

    history: bool = True
    """Whether it is a log. A queue hands each consumer group what that has not acknowledged,
    wherever it asks to read from."""
    whole: bool = False
    """Whether a publish is one transaction; else a part of it may arrive."""
    copies: bool = True
    """Whether a record may arrive twice by one publish that succeeds, as the client sends it again
    after a lost answer."""


KINDS = {
    "embedded": Kind(whole=True, copies=False),
    "kafka": Kind(copies=False),
    "nats": Kind(),
    "postgresql": Kind(whole=True, copies=False),
    "rabbitmq": Kind(),
    "redis": Kind(),
    "sns_sqs": Kind(history=False, copies=False),
    "queue": Kind(history=False),
}
"""The kinds by name; a ``queue`` is what RabbitMQ calls a quorum queue."""


class Log:
    """The broker: streams as lists, which outlive every node."""

    def __init__(
        self, ambient: Ambient, *, partitions: int = 4, kind: Kind = KINDS["rabbitmq"]
    ) -> None:
        """``partitions``: the number for a stream that is created by its first record."""
        self.streams: Streams[list[list[Record]]] = Streams()
        self.heads: Heads[str] = Heads()
        self.down = False
        self.kind = kind
        self.acknowledged: dict[tuple[str, Place], Position] = {}
        """By consumer group and partition, the position up to which all is acknowledged."""
        self.places: dict[str, tuple[str, int, Position, str | None]] = {}
        """Where each event came first, by its id: stream, partition, position and key."""
        self._ambient = ambient
        self._partitions = partitions

    def add(self, stream: str) -> None:
        """Add a stream without records."""
        self.streams.add(stream, [[] for _ in range(self._partitions)])

    @property
    def logs(self) -> Mapping[str, list[list[Record]]]:
        """All records, by stream and partition."""
        return self.streams.known

    def append(self, records: Sequence[Record]) -> None:
        """Add records, in their order."""
        now = self._ambient.now()
        streams = dict.fromkeys(record.stream for record in records)
        for stream in streams:
            if stream not in self.logs:
                self.add(stream)
        logs = self.logs
        indexes = partitions_of(records, {stream: len(logs[stream]) for stream in streams})
        replace = msgspec.structs.replace
        for record, index in zip(records, indexes, strict=True):
            log = logs[record.stream][index]
            log.append(replace(record, partition=index, position=len(log) + 1, time=now))
            place = (record.stream, index, len(log), record.key)
            self.places.setdefault(record.headers.get("id", ""), place)
        for stream in streams:
            self.heads.wake(stream)

    def set_down(self, down: bool) -> None:
        """Take the broker down, or bring it back."""
        self.down = down
        if not down:
            self.heads.wake_all()


class SimBroker:
    """A client of the log; an `oyez.ports.Broker`."""

    def __init__(self, log: Log, group: str = "", node: Node | None = None) -> None:
        """Without a ``node`` nothing goes wrong."""
        self.capabilities = Capabilities(
            durability="volatile", history=log.kind.history, processes=False
        )
        self._log = log
        self._group = group
        self._node = node

    async def open(self) -> None:
        pass  # there is nothing to connect to

    async def close(self) -> None:
        pass  # a later `open` still finds the records

    async def publish(self, records: Sequence[Record]) -> None:
        self._check()
        node = self._node
        if node is None:
            self._log.append(records)
            return
        world = node.world
        what = f"publish {describe(records)}"

        async def work() -> None:
            self._check()
            whole = records
            copies = world.faults.duplicate if self._log.kind.copies else 0.0
            if world.faulty and world.choices.pick((copies,), "copies"):
                node.suffer(f"published twice: {describe(records[:1])}")
                whole = [*records[:1], *records]
            self._log.append(whole)
            world.tell(node.name, what)
            world.stir(node.service)

        if world.faulty:
            if world.choices.pick((world.faults.down,), "down"):
                self._go_down()
                self._check()
            parts = len(records) > 1 and not self._log.kind.whole
            if parts and world.choices.pick((world.faults.lost,), "part"):
                count = 1 + world.choices.draw(len(records) - 1, "part")
                self._log.append(records[:count])
                told = f"published {count} of {len(records)}, then failed"
                node.suffer(f"{told}: {describe(records)}")
                raise broker_error("simulated: the connection was lost")
        await node.call("publish", what, work, broker_error)

    def _go_down(self) -> None:
        assert self._node is not None
        world, log = self._node.world, self._log
        seconds = 0.5 * 2 ** world.choices.draw(6, "down for")
        world.tell("broker", f"is down for {seconds:g} s", fault=True)
        log.set_down(True)

        world.loop.call_later(seconds, log.set_down, False, context=world.context)

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        log, node = self._log, self._node
        place = (stream, partition)
        handed = after
        if not log.kind.history:
            handed = log.acknowledged.get((self._group, place), BEGINNING)
        while True:
            records = log.logs[stream][partition] if stream in log.logs else []
            if len(records) <= handed or log.down:
                await log.heads.wait(stream)
                continue
            most = BATCH
            if node is not None and node.world.faulty:
                most = await self._hinder(node, place, min(BATCH, len(records) - handed))
            batch = records[handed : handed + most]
            handed = batch[-1].position
            yield Batch(batch)

    async def _hinder(self, node: Node, place: Place, most: int) -> int:
        """Delay a reader, fail it, or leave its partition unread; return how much it may have."""
        world = node.world
        faults, choices = world.faults, world.choices
        fate = choices.pick(
            (faults.slow, faults.unavailable / 2, faults.split, faults.down), "read"
        )
        if fate == 1:
            await asyncio.sleep(0.001 * 4 ** choices.draw(7, "read for"))
        elif fate == 2:
            node.suffer(f"lost its reader of {place[0]}[{place[1]}]")
            raise broker_error("simulated: the connection was lost")
        elif fate == 3:
            return 1 + choices.draw(most, "batch")
        elif fate == 4:
            seconds = 2.0 * 2 ** choices.draw(4, "unread")
            told = f"can't read {place[0]}[{place[1]}] for {seconds:g} s"
            node.suffer(told)
            await asyncio.sleep(seconds)
        return most

    async def streams(self) -> Mapping[str, int]:
        self._check()
        return {stream: len(logs) for stream, logs in self._log.logs.items()}

    async def create(self, stream: str, partitions: int) -> None:
        self._check()
        if stream not in self._log.logs:
            self._log.streams.add(stream, [[] for _ in range(partitions)])
        check_count(stream, len(self._log.logs[stream]), partitions)

    async def ends(self, stream: str) -> Sequence[Position]:
        self._check()
        return [len(log) if log else BEGINNING for log in self._log.logs.get(stream, [])]

    async def starts(self, stream: str) -> Sequence[Position]:
        self._check()
        return [BEGINNING for _ in self._log.logs.get(stream, [])]

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        return behind(await self.ends(stream), positions)

    async def inspect(self) -> Sequence[Finding]:
        return [
            Finding(
                grave=True,
                what="events are those of a simulation and end with it",
                remedy='set system.broker to "embedded:.oyez/events.db" or to a server',
            )
        ]

    def handled(self, stream: str, partition: int, position: Position) -> None:
        node, log = self._node, self._log
        place = (self._group, (stream, partition))
        if node is not None and node.world.faulty:
            lost = node.world.choices.pick((node.world.faults.lost,), "acknowledge")
            if lost:
                return  # it never arrives: what was handled is handed out again
        log.acknowledged[place] = max(position, log.acknowledged.get(place, BEGINNING))

    def on_streams(self, callback: Callable[[], None]) -> None:
        if self._node is not None:
            self._node.world.alarms.hang(self._node, callback)
        self._log.streams.listen(callback)

    def _check(self) -> None:
        if self._log.down:
            raise BrokerUnavailable("simulated: the broker is down")


def describe(records: Sequence[Record]) -> str:
    """Return the types and keys of records, for a story."""
    first = records[0]
    more = f" and {len(records) - 1} more" if len(records) > 1 else ""
    kind = first.headers.get("type", "?")
    return f"{kind} {first.key or ''}".rstrip() + more
