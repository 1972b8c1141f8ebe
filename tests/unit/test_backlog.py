"""What timers of windows wait for: the events that were published before their time."""

from __future__ import annotations

from math import inf

import pytest
from parts import STREAM, Parts, Placed

from oyez import Service
from oyez.handler import Handler, compile_handler
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Changes, Position, Record
from oyez.runtime.backlog import Backlog
from oyez.tables import PLACES


class Reads:
    """A service's partitions, its backlog, and the handler whose timers wait."""

    def __init__(self, partitions: int = PLACES, *, history: bool = True) -> None:
        self.parts = Parts(Service("desk"), history=history)
        self.partitions = partitions
        self.backlog = Backlog(
            "shop", self.parts.lanes, self.parts.broker, self.parts.store, self.parts.ambient
        )

        async def take(event: Placed) -> None: ...

        self.handler: Handler = compile_handler(take, [Placed], service="desk")

    async def publish(self, partition: int, count: int = 1, *, stream: str = STREAM) -> None:
        broker = self.parts.broker
        await broker.create(stream, self.partitions)
        key = next(k for k in map(str, range(999)) if partition_of(k, self.partitions) == partition)
        record = Record(stream=stream, key=key, headers={}, data=b"{}")
        await broker.publish([record] * count)

    async def others(self, partition: int, position: Position) -> None:
        """Let another process store a position."""
        claim = await self.parts.claim(partition=partition)
        await self.parts.store.begin().commit(Changes(claim=claim, position=position))

    async def late(self, part: int) -> float:
        """How long ago the moment is up to which all is handled."""
        return self.parts.ambient.now() - await self.backlog.handled(self.handler, part)


async def test_nothing_waits_where_nothing_was_published() -> None:
    reads = Reads()
    assert await reads.late(0) == 0
    await reads.publish(1)
    assert await reads.late(0) == 0
    assert await reads.late(1) == inf


async def test_a_lane_of_this_process_tells_how_far_it_is() -> None:
    reads = Reads()
    await reads.publish(3, 5)
    lane = await reads.parts.lane(3)
    assert await reads.late(3) == inf
    lane.position = 4
    assert await reads.late(3) == inf
    lane.position = 5
    assert await reads.late(3) == 0


async def test_of_another_process_the_store_does() -> None:
    reads = Reads()
    await reads.publish(3, 5)
    assert await reads.late(3) == inf
    await reads.others(3, 5)
    assert await reads.late(3) == 0


async def test_a_stream_that_is_never_quiet_holds_nothing_up_for_long() -> None:
    """At every look there are events to come, and yet all the earlier ones are handled."""
    reads = Reads()
    await reads.publish(3, 10)
    lane = await reads.parts.lane(3)
    assert await reads.late(3) == inf
    for second in range(1, 20):
        await reads.parts.ambient.advance(1.0)
        lane.position += 10
        await reads.publish(3, 10)
        assert await reads.late(3) == 1, second
    await reads.parts.ambient.advance(100.0)
    assert await reads.late(3) == 101
    lane.position += 10
    assert await reads.late(3) == 0


async def test_every_stream_of_the_handler_counts_and_no_other() -> None:
    reads = Reads()
    await reads.publish(3, stream="elsewhere.till")
    assert await reads.late(3) == 0
    await reads.publish(3, stream="shop.desk")
    await reads.publish(3)
    await reads.others(3, 1)
    assert await reads.late(3) == inf


@pytest.mark.parametrize("partitions", [1, 4, 5, 12, 16])
async def test_no_partition_of_its_keys_is_left_out(partitions: int) -> None:
    reads = Reads(partitions)
    for partition in range(partitions):
        await reads.publish(partition)
    for lag in range(partitions):
        for partition in range(partitions):
            await reads.others(partition, BEGINNING if partition == lag else 1)
        keys = [key for key in map(str, range(500)) if partition_of(key, partitions) == lag]
        for part in {partition_of(key, PLACES) for key in keys}:
            reads.backlog = Backlog(
                "shop", {}, reads.parts.broker, reads.parts.store, reads.parts.ambient
            )
            assert await reads.late(part) == inf


async def test_what_retention_has_deleted_is_not_waited_for() -> None:
    reads = Reads()
    await reads.publish(3, 5)
    await reads.others(3, 2)
    assert await reads.late(3) == inf

    async def starts(stream: str) -> list[Position]:
        return [5] * PLACES

    reads.parts.broker.starts = starts  # type: ignore[method-assign]
    assert await reads.late(3) == 0


async def test_while_the_broker_is_out_of_reach_everything_may_wait_there() -> None:
    reads = Reads()
    assert await reads.late(0) == 0
    reads.parts.broker.interrupt(True)
    assert await reads.late(0) == inf
    reads.parts.broker.interrupt(False)
    assert await reads.late(0) == 0


async def test_a_queue_has_no_end_to_wait_for() -> None:
    reads = Reads(history=False)
    await reads.publish(0)
    assert await reads.late(0) == -inf
