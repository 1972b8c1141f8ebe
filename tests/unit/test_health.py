"""Health: each reason not to be ready, when a process should be restarted, and what is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from parts import OWNER, STREAM, Parts, Placed, parked

from oyez import Service, tables
from oyez.errors import BrokerUnavailable, StoreUnavailable
from oyez.ports import Announcement, Changes
from oyez.runtime.claims import Claims
from oyez.runtime.health import LOOK, STALL, STUCK, Health
from oyez.signals import LagMeasured, Resumed, Stalled, Trouble

PLACE = (STREAM, 0)


class Checked(Parts):
    """A process whose one partition and relay are as a test leaves them."""

    async def start(self) -> None:
        self.claims = Claims(
            OWNER,
            self.lanes,
            self.parked,
            reads=lambda stream: True,
            reading=self.reading,
            timers=None,
            broker=self.broker,
            commits=self.commits,
            ambient=self.ambient,
            reports=self.reports,
            work=self.work,
            grace=1.0,
        )
        self.health = Health(
            OWNER,
            self.claims,
            self.parked,
            broker=self.broker,
            store=self.store,
            ambient=self.ambient,
            reports=self.reports,
        )
        await self.broker.create(STREAM, 1)
        self.one = await self.lane()
        self.health.start()

    async def wait(self, seconds: float) -> list[str]:
        """Let the time pass, in which claims are looked at; return why it is not ready."""
        end = self.ambient.monotonic() + seconds
        while self.ambient.monotonic() < end:
            await self.ambient.advance(min(LOOK, end - self.ambient.monotonic()))
            self.claims.swept = self.ambient.monotonic()
        return self.health.readiness()

    def lag(self, records: int) -> None:
        self.broker.behind[STREAM] = {0: records}


@pytest.fixture
async def checked() -> Any:
    process = Checked()
    await process.start()
    yield process
    process.health.stop()
    process.health.stop()


async def test_a_process_that_has_nothing_to_do_is_ready(checked: Checked) -> None:
    assert await checked.wait(300.0) == []
    assert checked.health.liveness() == []
    assert checked.health.warnings() == []
    assert checked.health.report() == {
        "ready": True, "reasons": [], "warnings": [], "lag": {"shop.till[0]": 0}
    }  # fmt: skip
    assert [(s.partition, s.records) for s in checked.signals(LagMeasured)][:1] == [(0, 0)]


async def test_a_broker_out_of_reach_fails_readiness_alone(checked: Checked) -> None:
    """No lag is claimed meanwhile, and a process is not restarted for it."""
    checked.lag(9)
    await checked.wait(STUCK * 2)
    checked.broker.faults.fail("lag", BrokerUnavailable("no route"), times=2)
    reasons = await checked.wait(LOOK)
    assert reasons[0] == "broker: no route"
    assert checked.health.liveness() == []
    assert checked.health.lag() == {PLACE: None}
    assert checked.signals(LagMeasured)[-1].records is None
    reasons = await checked.wait(LOOK * 2)
    assert not any(reason.startswith("broker") for reason in reasons)
    assert checked.health.lag() == {PLACE: 9}


async def test_the_age_of_the_oldest_event_grows_while_it_is_not_handled(checked: Checked) -> None:
    def age() -> float | None:
        return checked.signals(LagMeasured)[-1].seconds

    await checked.wait(LOOK)
    assert age() == 0.0
    checked.lag(2)
    await checked.wait(LOOK)
    assert age() == 0.0  # it came since the last look
    await checked.wait(LOOK)
    assert age() == LOOK
    checked.one.reached, checked.one.in_hand = checked.ambient.now() - 3600.0, True
    await checked.wait(LOOK)
    assert age() == 3600.0 + LOOK
    checked.one.in_hand = False  # between two batches of a backlog
    await checked.wait(LOOK)
    assert age() == 3600.0 + LOOK * 2
    checked.lag(0)
    await checked.wait(LOOK)
    assert age() == 0.0
    checked.lag(1)
    await checked.wait(LOOK)
    assert age() == 0.0
    checked.broker.faults.fail("lag", BrokerUnavailable("no route"))
    await checked.wait(LOOK)
    assert age() is None


async def test_a_store_out_of_reach_fails_readiness_alone(checked: Checked) -> None:
    for statement in (tables.OLDEST_RETRY, tables.OUTBOX_HEAD, tables.REFUSALS):
        checked.store.faults.fail(
            "fetch", StoreUnavailable("disk full"), when=lambda sql, one=statement: sql == one
        )
        assert await checked.wait(LOOK) == ["store: disk full"]
        assert checked.health.liveness() == []
        assert await checked.wait(LOOK) == []


async def test_a_partition_that_stands_still_is_told_once_and_once_when_it_moves(
    checked: Checked,
) -> None:
    checked.lag(3)
    assert await checked.wait(STALL) == []
    (reason,) = await checked.wait(LOOK * 2)
    assert reason.startswith("shop.till[0] has made no progress for ")
    assert checked.health.stalled == [("", *PLACE)]
    await checked.wait(60.0)
    (stalled,) = checked.signals(Stalled)
    assert (stalled.stream, stalled.partition) == PLACE
    assert STALL < stalled.seconds <= STALL + LOOK
    assert checked.signals(Resumed) == []
    checked.one.progress()
    assert await checked.wait(LOOK) == []
    assert len(checked.signals(Resumed)) == 1
    await checked.wait(STALL * 2)
    assert len(checked.signals(Stalled)) == 2, "it stands still again, with the same lag"
    checked.lag(0)
    assert await checked.wait(60.0) == []
    assert len(checked.signals(Resumed)) == 2


async def test_a_partition_that_moves_however_slowly_is_not_stalled(checked: Checked) -> None:
    """Also when it is its parked events that move."""
    checked.lag(1_000)
    for turn in range(10):
        assert await checked.wait(STALL - LOOK) == []
        if turn % 2:
            checked.one.progress()
        else:
            checked.one.chains.remove(None)
    assert checked.signals(Stalled) == []


async def test_a_long_silence_before_the_lag_is_no_stall(checked: Checked) -> None:
    await checked.wait(3_600.0)
    checked.lag(1)
    assert await checked.wait(STALL) == []
    assert await checked.wait(LOOK * 2) != []


async def test_a_partition_that_nobody_reads_is_told(checked: Checked) -> None:
    """Once, whoever takes it in the end."""
    checked.lanes.clear()
    checked.claims.adrift = {PLACE: checked.ambient.monotonic()}
    assert await checked.wait(STALL) == []
    (reason,) = await checked.wait(LOOK)
    assert reason.startswith("shop.till[0] has been read by no replica for")
    await checked.wait(60.0)
    assert len(checked.signals(Stalled)) == 1
    checked.claims.adrift = {}
    assert await checked.wait(LOOK) == []
    assert len(checked.signals(Resumed)) == 1


async def test_a_stalled_partition_that_is_given_up_is_no_longer_ours_to_tell(
    checked: Checked,
) -> None:
    checked.lag(3)
    assert await checked.wait(STALL + LOOK * 2) != []
    checked.lanes.clear()
    assert await checked.wait(LOOK) == []
    assert checked.health.lag() == {}
    assert len(checked.signals(Resumed)) == 1
    assert checked.signals(LagMeasured)[-1].records is None


async def test_claims_that_nobody_looks_at_fail_readiness(checked: Checked) -> None:
    await checked.ambient.advance(STALL)
    assert checked.health.readiness() == []
    await checked.ambient.advance(LOOK)
    (reason,) = checked.health.readiness()
    assert reason.startswith("claims have not been swept for 25 s")


async def test_parked_events_that_are_overdue_fail_readiness(checked: Checked) -> None:
    await checked.park(parked("e1", due=checked.ambient.now()))
    assert await checked.wait(STALL) == []
    assert await checked.wait(LOOK) == ["parked events have been overdue for 25 s"]
    (event,) = await checked.store.due(OWNER, "take", checked.ambient.now(), 1)
    await checked.store.begin().commit(Changes(settled=[event]))
    assert await checked.wait(LOOK) == []


async def test_an_outbox_that_stands_still_fails_readiness(checked: Checked) -> None:
    """One that moves, or holds delayed events alone, does not."""
    later = checked.ambient.now() + 10_000.0
    await _announce(checked, due=later)
    assert await checked.wait(300.0) == []
    await _announce(checked)
    await _announce(checked)
    assert await checked.wait(STALL) == []
    (reason,) = await checked.wait(LOOK * 2)
    assert reason.startswith("the outbox has made no progress for")
    first = next(row["seq"] for row in checked.store.announced if row["due"] == 0)
    await checked.store.begin().commit(Changes(sent=[first]))
    assert await checked.wait(LOOK) == []


async def test_a_relay_that_fails_says_since_when(checked: Checked) -> None:
    relay = checked.claims.relay = await checked.relay()
    checked.broker.faults.fail("publish", BrokerUnavailable("no route"), times=1_000)
    await _announce(checked)
    relay.start()
    reasons = await checked.wait(30.0)
    assert reasons == ["outbox not published for 30 s"]
    checked.broker.faults.mend()
    assert await checked.wait(LOOK * 2) == []
    await relay.stop()


async def test_refused_events_are_a_warning_and_readiness_stays(checked: Checked) -> None:
    await _announce(checked)
    (row,) = checked.store.announced
    refuse = (tables.REFUSE, [{"seq": row["seq"]}])
    await checked.store.begin().commit(Changes(writes=[refuse]))
    assert await checked.wait(60.0) == []
    (warning,) = checked.health.warnings()
    assert "the broker refused: 1;" in warning
    assert warning.endswith("see oyez dead list desk")
    assert checked.health.report()["warnings"] == [warning]


async def test_a_partition_that_is_stuck_with_all_in_reach_wants_a_restart(
    checked: Checked,
) -> None:
    checked.lag(3)
    await checked.wait(STUCK)
    assert checked.health.liveness() == []
    await checked.wait(LOOK * 2)
    assert checked.health.liveness() == ["shop.till[0] is stuck"]
    checked.one.progress()
    await checked.wait(LOOK)
    assert checked.health.liveness() == []


async def test_a_process_whose_parked_events_run_is_not_stuck() -> None:
    """The partition waits for room, which a handler that takes its time will make."""
    service = Service("desk")
    goes_on = asyncio.Event()

    @service.on(Placed, timeout=None)
    async def take(event: Placed) -> None:
        await goes_on.wait()

    process = Checked(service)
    await process.park(parked("e1"))
    await process.start()
    process.parked.start()
    process.lag(3)
    await process.wait(STUCK * 2)
    assert process.health.stalled == [("", *PLACE)]
    assert process.health.liveness() == []
    goes_on.set()
    await process.wait(STUCK * 2)
    assert process.health.liveness() == ["shop.till[0] is stuck"]
    process.health.stop()
    await process.parked.stop(0.0)


async def test_a_look_that_fails_otherwise_is_reported_and_made_again(checked: Checked) -> None:
    checked.broker.faults.fail("streams", ValueError("a driver's own"))
    assert await checked.wait(LOOK * 3) == []
    (trouble,) = checked.signals(Trouble)
    assert trouble.part == "health"
    assert checked.health.lag() == {PLACE: 0}


async def _announce(checked: Checked, due: float = 0.0) -> None:
    row = Announcement(stream="shop.desk", key="a", headers={"id": "1"}, data=b"{}", due=due)
    await checked.store.begin().commit(Changes(announced=[row]))
