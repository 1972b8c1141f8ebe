"""G3, G7: replicas share partitions, hand them over in order, and take over from the dead."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ticks import Ticks, paused, wait_for

NAMES = tuple(f"clock-{n}" for n in range(40))


@pytest.fixture
async def ticks(tmp_path: Path) -> AsyncIterator[Ticks]:
    system = Ticks(tmp_path)
    await system.open()
    yield system
    await system.close()


def assert_each_once_in_order(ticks: Ticks) -> None:
    for name in NAMES:
        numbers = [number for _, number, _ in ticks.seen(name)]
        assert numbers == list(range(1, ticks.ticked(name) + 1)), name


async def shared_by_two(ticks: Ticks) -> None:
    await ticks.tick(*NAMES)
    first, second = ticks.start_replica(), ticks.start_replica()
    wait_for(
        lambda: sorted(ticks.owners().items()) == sorted({first.pid: 4, second.pid: 4}.items())
    )


async def test_two_replicas_share_and_one_takes_over_within_five_seconds(ticks: Ticks) -> None:
    await shared_by_two(ticks)
    first, second = ticks.replicas
    for _ in range(20):
        await ticks.tick(*NAMES)
    first.kill()
    wait_for(lambda: ticks.owners() == {second.pid: 8}, seconds=5.0)
    for _ in range(20):
        await ticks.tick(*NAMES)
    wait_for(lambda: len(ticks.seen()) == 41 * len(NAMES))
    assert_each_once_in_order(ticks)
    third = ticks.start_replica()
    wait_for(lambda: ticks.owners() == {second.pid: 4, third.pid: 4})
    await ticks.tick(*NAMES)
    wait_for(lambda: len(ticks.seen()) == 42 * len(NAMES))
    assert_each_once_in_order(ticks)


async def test_a_replica_that_is_told_to_stop_hands_over_and_exits_0(ticks: Ticks) -> None:
    await shared_by_two(ticks)
    first, second = ticks.replicas
    for _ in range(10):
        await ticks.tick(*NAMES)
    first.send_signal(signal.SIGTERM)
    assert first.wait(15) == 0
    await ticks.tick(*NAMES)
    wait_for(lambda: len(ticks.seen()) == 12 * len(NAMES))
    assert ticks.owners() == {second.pid: 8}
    assert_each_once_in_order(ticks)


async def test_a_paused_replica_is_replaced_and_its_commit_is_fenced(ticks: Ticks) -> None:
    (ticks.root / "slow").touch()
    await ticks.tick("slow")
    zombie = ticks.start_replica()
    wait_for(lambda: ticks.owners() == {zombie.pid: 8})
    wait_for((ticks.root / f"started-{zombie.pid}").exists)
    with paused(zombie):
        other = ticks.start_replica()
        wait_for(lambda: ticks.owners() == {other.pid: 8})
        (ticks.root / "slow").unlink()
        wait_for(lambda: ticks.seen("slow"))
        assert ticks.seen("slow") == [("slow", 1, other.pid)]
    await ticks.tick("slow", *NAMES)
    wait_for(lambda: len(ticks.seen()) == 2 + len(NAMES))
    assert [number for _, number, _ in ticks.seen("slow")] == [1, 2]
    assert_each_once_in_order(ticks)
