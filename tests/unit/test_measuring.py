"""What a service process measures of its broker and its store."""

from __future__ import annotations

from parts import STREAM, Parts, parked

from oyez import Event, Retry, Service, Transaction
from oyez.envelope import format_time
from oyez.errors import BrokerUnavailable, StoreUnavailable
from oyez.ports import Announcement, Changes
from oyez.runtime.measuring import ROUND, Measuring
from oyez.saga import Saga, end, starts
from oyez.signals import BrokerMeasured, EventsLate, StoreMeasured
from oyez.testing import running
from oyez.window import Window


class Reading(Event, type="test.reading", key="sensor"):
    sensor: str
    at: float


class Begun(Event, type="test.begun", key="order"):
    order: str


class Told(Event, type="test.told", key="order"):
    order: str


class Second(Window, size=1, late=0):
    count: int = 0

    def add(self, event: Reading) -> None:
        self.count += 1

    def close(self) -> None:
        pass


class Sale(Saga, key="order", ends=("over",)):
    @starts
    def begun(self, event: Begun) -> None:
        pass

    @end("over")
    def over(self) -> Told:
        return Told(order=self.key)


def measuring(parts: Parts) -> Measuring:
    return Measuring(
        [],
        STREAM,
        broker=parts.broker,
        store=parts.store,
        ambient=parts.ambient,
        reports=parts.reports,
    )


async def test_what_waits_is_told_with_its_age() -> None:
    parts = Parts()
    await parts.broker.create(STREAM, 1)
    headers = {"id": "1", "time": format_time(parts.ambient.now())}
    lane = await parts.lane()
    await parts.store.begin().commit(
        Changes(
            announced=[
                Announcement(stream=STREAM, key="k", headers=headers, data=b"1"),
                Announcement(stream=STREAM, key="k", headers={"id": "2"}, data=b"2"),
            ],
            parked=[parked("3")],
            claim=lane.claim,
            time=parts.ambient.now(),
        )
    )
    await parts.ambient.advance(60.0)
    await measuring(parts).look()
    (found,) = parts.signals(StoreMeasured)
    assert (found.outbox, found.refused, found.parked, found.dead) == (2, 0, 1, 0)
    assert found.outbox_seconds is not None
    assert 59.9 < found.outbox_seconds <= 60.1
    assert found.parked_seconds == 60.0
    assert found.stuck == {}
    (looked,) = parts.signals(BrokerMeasured)
    assert looked.seconds is not None


async def test_what_can_not_be_read_is_unknown_until_it_can() -> None:
    parts = Parts()
    looks = measuring(parts)
    parts.broker.faults.fail("ends", BrokerUnavailable("no route"))
    parts.store.faults.fail("fetch", StoreUnavailable("disk full"))
    looks.start()
    await parts.ambient.advance(1.0)
    assert [each.seconds for each in parts.signals(BrokerMeasured)] == [None]
    (failed,) = parts.signals(StoreMeasured)
    assert {failed.seconds, failed.outbox, failed.parked, failed.dead, failed.stuck} == {None}
    await parts.ambient.advance(ROUND)
    assert parts.signals(BrokerMeasured)[-1].seconds is not None
    assert parts.signals(StoreMeasured)[-1].outbox == 0
    looks.stop()
    looks.stop()
    told = len(parts.signals(StoreMeasured))
    await parts.ambient.advance(ROUND * 3)
    assert len(parts.signals(StoreMeasured)) == told


async def test_late_events_and_stuck_sagas_are_told() -> None:
    service = Service("meter")
    service.window(Second, Reading, time="at")
    service.saga(Sale)
    async with running(service) as system:
        process = system.processes["meter"]
        for at in (1_000_000.2, 1_000_009.0, 1_000_000.3, 1_000_000.4):
            await system.publish(Reading(sensor="a", at=at))
        await system.publish(Begun(order="1"))
        await system.settled()
        await process.measuring.look()
        await process.measuring.look()
        late = [each for each in system.signals if isinstance(each, EventsLate)]
        assert [(each.window, each.events) for each in late] == [("Second", 0), ("Second", 2)]
        stored = [each for each in system.signals if isinstance(each, StoreMeasured)]
        assert stored[-1].stuck == {"Sale": 0}


async def test_dead_letters_are_told() -> None:
    service = Service("till")

    @service.on(Begun, retry=Retry(attempts=1))
    async def refuse(event: Begun, tx: Transaction) -> None:
        raise ValueError("never")

    async with running(service) as system:
        for order in "123":
            await system.publish(Begun(order=order))
        await system.settled()
        await system.processes["till"].measuring.look()
        stored = [each for each in system.signals if isinstance(each, StoreMeasured)]
        assert (stored[-1].dead, stored[-1].parked, stored[-1].outbox) == (3, 0, 0)
