"""A lane: its chains of parked events and its position."""

from __future__ import annotations

import asyncio

import pytest
from fakes import ITEM
from parts import STREAM, Parts, parked

from oyez.errors import ConstraintViolated, Fenced, StoreUnavailable
from oyez.ports import Changes
from oyez.runtime.lane import Chains
from oyez.signals import ClaimLost, Trouble
from oyez.testing import VirtualAmbient


async def test_a_chain_is_blocked_while_any_of_its_events_is_parked() -> None:
    chains = Chains({"a": 2, None: 3}, VirtualAmbient())
    assert chains.total == 5
    assert "a" in chains
    assert "b" not in chains
    chains.add("b")
    chains.remove("a")
    assert "a" in chains
    chains.remove("a")
    assert "a" not in chains
    assert "b" in chains
    chains.remove(None)
    assert chains.total == 3


async def test_who_waits_for_room_wakes_when_an_event_is_settled() -> None:
    ambient = VirtualAmbient()
    chains = Chains({"a": 1}, ambient)
    waiting = asyncio.ensure_future(chains.wait(10.0))
    await ambient.advance(3.0)
    assert not waiting.done()
    chains.remove("a")
    await ambient.advance(0.0)
    assert waiting.done()
    assert chains.freed == 3.0
    again = asyncio.ensure_future(chains.wait(10.0))
    await ambient.advance(10.0)
    assert again.done()


async def test_a_commit_moves_the_position_and_lets_the_broker_know() -> None:
    parts = Parts()
    lane = await parts.lane()
    await parts.ambient.advance(2.0)
    await lane.commit(Changes(claim=lane.claim), 7)
    assert (lane.position, lane.saved_at) == (7, 2.0)
    assert parts.store.position(STREAM) == 7
    assert parts.broker.told == [7]
    await lane.commit(Changes(claim=lane.claim), None)
    assert parts.store.position(STREAM) == 7
    assert parts.broker.told == [7]


async def test_a_unit_of_work_is_committed_with_the_position() -> None:
    parts = Parts()
    lane = await parts.lane()
    for number, error in ((1, None), (1, ConstraintViolated)):
        unit = parts.commits.unit(lane.claim)
        unit.changes.handled.append((str(number), "/s", "take"))
        if error is None:
            await lane.commit(unit, 4)
        else:
            with pytest.raises(error):
                await lane.commit(unit, 5)
    assert (lane.position, parts.store.position(STREAM)) == (4, 4)


async def test_parking_wakes_what_runs_parked_events() -> None:
    parts = Parts()
    lane = await parts.lane()
    waiting = asyncio.ensure_future(parts.work.wait(60.0))
    await lane.commit(Changes(claim=lane.claim), 1)
    await parts.ambient.advance(1.0)
    assert not waiting.done()
    await lane.commit(Changes(claim=lane.claim, parked=[parked("e1")]), 2)
    await parts.ambient.advance(0.0)
    assert waiting.done()


async def test_to_advance_never_goes_back() -> None:
    parts = Parts()
    lane = await parts.lane()
    await lane.advance(5)
    await lane.advance(5)
    await lane.advance(3)
    await lane.advance(None)
    assert parts.store.position(STREAM) == 5
    assert parts.broker.told == [5]


async def test_a_position_that_moved_is_saved_once() -> None:
    parts = Parts()
    lane = await parts.lane()
    lane.position = 9
    await lane.save()
    await lane.save()
    assert parts.store.position(STREAM) == 9
    assert parts.broker.told == [9]


async def test_a_store_that_is_down_is_reported_and_the_position_saved_later() -> None:
    parts = Parts()
    lane = await parts.lane()
    lane.position = 9
    parts.store.faults.fail("commit", StoreUnavailable("disk full"))
    await lane.save()
    (trouble,) = parts.signals(Trouble)
    assert (trouble.part, trouble.error) == ("position", "disk full")
    assert not lane.takes_no_more
    await lane.save()
    assert parts.store.position(STREAM) == 9


async def test_a_lane_that_is_fenced_saves_nothing_more() -> None:
    parts = Parts()
    lane = await parts.lane()
    parts.store.take_over(STREAM)
    lane.position = 9
    await lane.save()
    assert lane.fenced
    assert lane.takes_no_more
    (signal,) = parts.signals(ClaimLost)
    assert (signal.stream, signal.partition, signal.epoch) == (STREAM, 0, 1)
    await lane.save()
    assert len(parts.signals(ClaimLost)) == 1
    with pytest.raises(Fenced):
        await lane.commit(Changes(claim=lane.claim, writes=[(ITEM, [{"id": 1}])]), 9)
    assert parts.store.position(STREAM) == 0
    assert parts.store.written == []


async def test_progress_is_a_batch_or_a_parked_event_that_ends() -> None:
    parts = Parts()
    lane = await parts.lane(parked=1)
    assert lane.moved == 0.0
    await parts.ambient.advance(2.0)
    lane.progress()
    assert lane.moved == 2.0
    await parts.ambient.advance(3.0)
    lane.chains.remove(None)
    assert lane.moved == 5.0


async def test_a_stream_that_is_made_anew_is_read_from_its_beginning() -> None:
    parts = Parts()
    lane = await parts.lane()
    await lane.advance(50)
    lane.restart()
    assert lane.position == 0
    await lane.advance(2)
    assert parts.store.position(STREAM) == 2
    assert lane.name == "shop.till[0]"
