"""Screening: the window, the customer's history, and the score."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import asdict

from fraud.events import (
    Screen,
    TransferCleared,
    TransferCounted,
    TransferFlagged,
)
from fraud.model import Model
from fraud.rules import LIMIT, History, judge
from fraud.service import Burst, Models, service
from oyez.testing import Running

NOON = datetime.fromisoformat("2026-11-01T12:00:00+00:00")
AMSTERDAM, TOKYO = (52.37, 4.90), (35.68, 139.69)


class NoModel(Models):
    """Before anything is learnt."""

    def __init__(self) -> None: ...

    async def newest(self) -> Model:
        return Model()


def asked(number: int, minutes: float = 0.0, **changed: Any) -> Screen:
    values: dict[str, Any] = {
        "transfer_id": str(number),
        "source": "ada",
        "cents": 1_000,
        "device": "phone",
        "country": "NL",
        "place": AMSTERDAM,
        "at": NOON + timedelta(minutes=minutes),
    }
    return Screen(**{**values, **changed})


def counted(transfer: Screen) -> TransferCounted:
    return TransferCounted(**asdict(transfer), burst=1, sharing=1)


def known() -> History:
    history = History.keyed("ada")
    for number, minutes in enumerate((-2_880, -1_440, 120)):
        history.learn(counted(asked(number, minutes)))
    return history


def test_a_usual_transfer_has_no_unusual_facts() -> None:
    facts = known().facts(counted(asked(9, 180)))
    assert set(facts.values()) == {0.0}
    assert judge(facts, 0.0) == (0.0, "")


def test_nobody_is_in_amsterdam_and_two_hours_later_in_tokyo() -> None:
    stolen = counted(asked(9, 240, place=TOKYO, device="another"))
    facts = known().facts(stolen)
    assert facts["speed"] == pytest.approx(9_290 / 2 / 900, rel=0.03)
    score, reason = judge(facts, 0.0)
    assert score >= LIMIT
    assert reason == "faster than an airliner; a device of less than a day"
    later = known().facts(counted(asked(9, 120 + 24 * 60, place=TOKYO)))
    assert later["speed"] < 1


def test_each_fact_alone_is_no_crime_but_the_model_adds_to_it() -> None:
    usual = dict.fromkeys(("burst", "sharing", "speed", "amount", "device"), 0.0)
    for fact, value in (("burst", 3.0), ("sharing", 4.0), ("speed", 5.0), ("amount", 4.0)):
        assert judge({**usual, fact: value}, 0.0)[0] < LIMIT
    assert judge({**usual, "sharing": 4.0}, 0.9)[0] >= LIMIT


async def test_a_flagged_transfer_teaches_nothing_of_its_customer(running: Running) -> None:
    async with running(service, provide={Models: NoModel()}) as system:
        for number, minutes in enumerate((-2_880, -1_440, 120)):
            await system.publish(asked(number, minutes), service="transfers")
            await system.settled()
        before = await service.read(History, "ada")
        stolen = asked(9, 240, place=TOKYO, device="another", cents=90_000)
        await system.publish(stolen, service="transfers")
        await system.settled()
        assert [each.transfer_id for each in system.announced(TransferFlagged)] == ["9"]
        after = await service.read(History, "ada")
        assert before is not None
        before.seen += 1
        assert after == before


def test_two_sessions_that_an_event_connects_are_one() -> None:
    one, other = Burst.keyed("emulator", NOON), Burst.keyed("emulator", NOON)
    one.add(asked(1))
    other.add(asked(2, 9, source="bob"))
    one.join(other)
    assert (one.count, one.sources) == (2, ["ada", "bob"])


async def test_a_ring_is_found_by_its_device(running: Running) -> None:
    async with running(service, provide={Models: NoModel()}) as system:
        for number in range(12):
            transfer = asked(number, number, source=f"mule {number % 4}", device="emulator")
            await system.publish(transfer, service="transfers")
            await system.settled()
        found = system.announced(TransferCounted)
        assert [each.burst for each in found] == list(range(1, 13))
        assert [each.sharing for each in found] == [1, 2, 3, *[4] * 9]
        assert len(system.announced(TransferCleared)) == 3
        flagged = system.announced(TransferFlagged)
        assert flagged[-1].reason == "a device of many accounts; many transfers in a row"


async def test_every_transfer_is_answered_also_a_late_one(running: Running) -> None:
    async with running(service, provide={Models: NoModel()}) as system:
        for number, minutes in enumerate((0, 300, 600, 1)):
            await system.publish(asked(number, minutes), service="transfers")
            await system.settled()
        assert len(system.announced(TransferCleared)) == 4
        assert [each.burst for each in system.announced(TransferCounted)] == [1, 1, 1, 1]


def test_a_transfer_that_is_overtaken_makes_no_device_strange() -> None:
    history = known()
    history.learn(counted(asked(8, 240, device="new phone")))
    assert history.facts(counted(asked(9, 250, device="new phone")))["device"] == 1
    assert history.facts(counted(asked(9, 230, device="new phone")))["device"] == 0
    history.learn(counted(asked(9, 230, device="new phone")))
    assert history.devices["new phone"] == asked(9, 230).at.timestamp()
