"""Reading one partition: gaps, errors and ends, with a consumer that does what a test says."""

from __future__ import annotations

import asyncio

from parts import STREAM, Parts, batch, record

from oyez.errors import BrokerUnavailable, Fenced
from oyez.ports import Batch
from oyez.runtime.lane import Lane
from oyez.runtime.reading import Reading
from oyez.signals import BatchHandled, ClaimLost, EventsMissed, Trouble


class Reader:
    """Takes batches by moving the lane on, unless something is to happen first."""

    def __init__(self, parts: Parts, lane: Lane) -> None:
        self.parts = parts
        self.lane = lane
        self.seen: list[int] = []
        self.errors: list[Exception] = []
        self.goes_on: asyncio.Event | None = None
        self.reading = Reading(
            lane, self, broker=parts.broker, ambient=parts.ambient, reports=parts.reports
        )

    async def take(self, batch: Batch) -> int:
        self.seen.extend(record.position for record in batch.records)
        if self.goes_on is not None:
            await self.goes_on.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.lane.position = batch.records[-1].position
        return len(batch.records)


async def reader(parts: Parts) -> Reader:
    await parts.broker.create(STREAM, 1)
    return Reader(parts, await parts.lane())


async def test_it_reads_from_the_lane_s_position_on_and_says_what_was_handled() -> None:
    parts = Parts()
    one = await reader(parts)
    await one.lane.advance(1)
    await parts.broker.publish([record(0), record(0), record(0)])
    one.reading.start()
    await parts.ambient.advance(1.0)
    assert parts.broker.reads == [(STREAM, 0, 1)]
    assert one.seen == [2, 3]
    (handled,) = parts.signals(BatchHandled)
    assert (handled.stream, handled.partition, handled.events) == (STREAM, 0, 2)
    assert one.lane.idle
    await parts.broker.publish([record(0)])
    await parts.ambient.advance(1.0)
    assert one.seen == [2, 3, 4]
    assert one.lane.moved == 1.0
    await one.reading.stop()


async def test_the_lane_tells_how_old_what_it_has_in_hand_is() -> None:
    parts = Parts()
    one = await reader(parts)
    one.goes_on, one.errors = asyncio.Event(), [ValueError("once")]
    records = [record(8, time=100.0), record(9, time=200.0)]
    parts.broker.script += [batch(*records), batch(*records)]
    assert (one.lane.reached, one.lane.in_hand) == (0.0, False)
    one.reading.start()
    await parts.ambient.advance(0.0)
    assert (one.lane.reached, one.lane.in_hand) == (100.0, True)
    one.goes_on.set()
    await parts.ambient.advance(0.0)
    assert (one.lane.reached, one.lane.in_hand) == (100.0, False)  # it failed
    await parts.ambient.advance(1.0)
    assert (one.lane.reached, one.lane.in_hand) == (200.0, False)
    await one.reading.stop()


async def test_a_gap_is_told() -> None:
    parts = Parts()
    one = await reader(parts)
    parts.broker.script.append(batch(record(8), missed=7))
    one.reading.start()
    await parts.ambient.advance(1.0)
    (missed,) = parts.signals(EventsMissed)
    assert (missed.stream, missed.partition, missed.events) == (STREAM, 0, 7)
    assert one.seen == [8]
    await one.reading.stop()


async def test_a_stream_that_was_made_anew_is_read_from_its_beginning() -> None:
    """The error is told; the positions go back, and what fails then is read again from there."""
    parts = Parts()
    one = await reader(parts)
    await one.lane.advance(50)
    await parts.broker.publish([record(0)])
    parts.broker.script.append(batch(record(1), restarted=True))
    one.errors.append(ValueError("no"))
    one.reading.start()
    await parts.ambient.advance(1.0)
    assert parts.broker.reads == [(STREAM, 0, 50), (STREAM, 0, 0)]
    assert "created again: records after position 50 are lost" in parts.signals(Trouble)[0].error
    assert one.seen == [1, 1]
    await one.reading.stop()
    assert parts.store.position(STREAM) == 1


async def test_after_an_error_the_batch_is_read_again_and_the_waits_grow() -> None:
    parts = Parts()
    one = await reader(parts)
    await parts.broker.publish([record(0)])
    one.errors += [ValueError("first"), ValueError("second")]
    parts.broker.faults.fail("read", BrokerUnavailable("away"))
    one.reading.start()
    await parts.ambient.advance(5.0)
    assert one.seen == [1, 1, 1]
    assert [trouble.part for trouble in parts.signals(Trouble)] == ["shop.till[0]"] * 3
    assert len(parts.broker.reads) == 4
    assert one.lane.position == 1
    await one.reading.stop()


async def test_fenced_it_ends_and_says_so() -> None:
    parts = Parts()
    one = await reader(parts)
    await parts.broker.publish([record(0)])
    one.errors.append(Fenced("another owns it"))
    one.reading.start()
    await parts.ambient.advance(60.0)
    assert one.seen == [1]
    assert one.lane.fenced
    assert len(parts.signals(ClaimLost)) == 1
    await one.reading.stop()
    assert parts.store.position(STREAM) == 0


async def test_stopped_while_it_waits_for_records_it_saves_its_position() -> None:
    parts = Parts()
    one = await reader(parts)
    await parts.broker.publish([record(0)])
    one.reading.start()
    await parts.ambient.advance(1.0)
    assert parts.store.position(STREAM) == 0
    await one.reading.stop()
    await one.reading.stop()
    assert parts.store.position(STREAM) == 1
    await parts.broker.publish([record(0)])
    await parts.ambient.advance(1.0)
    assert one.seen == [1]


async def test_stopped_in_a_batch_it_finishes_the_batch() -> None:
    parts = Parts()
    one = await reader(parts)
    one.goes_on = asyncio.Event()
    await parts.broker.publish([record(0)])
    one.reading.start()
    await parts.ambient.advance(1.0)
    assert not one.lane.idle
    stopping = asyncio.ensure_future(one.reading.stop())
    await parts.ambient.advance(1.0)
    assert not stopping.done()
    assert one.lane.takes_no_more
    one.goes_on.set()
    await stopping
    assert parts.store.position(STREAM) == 1


async def test_killed_it_leaves_everything_as_it_was() -> None:
    parts = Parts()
    one = await reader(parts)
    one.goes_on = asyncio.Event()
    await parts.broker.publish([record(0)])
    one.reading.start()
    await parts.ambient.advance(1.0)
    one.reading.kill()
    one.goes_on.set()
    await parts.ambient.advance(1.0)
    assert one.lane.position == 0
    assert parts.signals(BatchHandled) == []
    assert parts.signals(Trouble) == []


async def test_a_reading_that_never_began_can_be_stopped() -> None:
    parts = Parts()
    one = await reader(parts)
    await one.reading.stop()
    assert one.seen == []
