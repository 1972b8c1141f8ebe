"""Recommend alone: what is seen together, who is forgotten, and the model of a night."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from oyez.testing import Running
from recommend import service as recommend
from recommend.events import CompanionsFound, ModelTrained, SeenTogether, VisitEnded, VisitsErased
from recommend.service import HALF, STRONGEST, Companions, service

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def seen(*others: str, after: float = 0.0) -> SeenTogether:
    at = NOON + timedelta(seconds=after)
    return SeenTogether(item="bell", others=list(others), at=at)


def visit(person: str, *items: str) -> VisitEnded:
    return VisitEnded(person=person, end=NOON, items=list(items))


def test_given_a_visit_when_sixty_days_pass_then_it_counts_half() -> None:
    companions = Companions.keyed("bell")
    companions.fold(seen("boots"))
    companions.fold(seen("boots", "quill", after=HALF))
    assert companions.visits == pytest.approx(1.5)
    assert companions.counts == pytest.approx({"boots": 1.5, "quill": 1.0})


def test_given_two_visits_when_they_come_in_another_order_then_the_counts_are_the_same() -> None:
    early, late = seen("boots"), seen("boots", "quill", after=HALF / 3)
    one, other = Companions.keyed("bell"), Companions.keyed("bell")
    for event in (early, late):
        one.fold(event)
    for event in (late, early):
        other.fold(event)
    assert one.counts == pytest.approx(other.counts)
    assert (one.visits, one.at) == (pytest.approx(other.visits), other.at)


def test_given_many_companions_when_they_are_told_then_the_strongest_are() -> None:
    companions = Companions.keyed("bell")
    companions.fold(seen(*map(str, range(80))))
    told = companions.fold(seen("79", "78"))
    assert told is not None
    assert len(told.companions) == STRONGEST
    assert list(told.companions)[:2] == ["78", "79"]


def test_given_a_hundred_visits_when_one_more_comes_then_it_is_not_told_yet() -> None:
    companions = Companions.keyed("bell")
    told = [companions.fold(seen("boots")) for _ in range(150)]
    assert told[0] is not None
    assert 25 < sum(each is not None for each in told) < 60
    assert None in told[100:]


async def test_companions_are_the_same_both_ways(running: Running) -> None:
    async with running(service) as system:
        for person in ("p", "q"):
            await system.publish(visit(person, "bell", "boots"))
        await system.publish(visit("r", "bell"))
        await system.settled()
        bell, boots = [await service.read(Companions, item) for item in ("bell", "boots")]
        assert bell is not None
        assert boots is not None
        assert (bell.visits, bell.counts) == (3.0, {"boots": 2.0})
        assert (boots.visits, boots.counts) == (2.0, {"bell": 2.0})
        assert system.announced(CompanionsFound)


async def test_who_is_forgotten_is_not_learned_from(running: Running) -> None:
    async with running(service) as system:
        for event in (visit("p", "bell"), visit("q", "bell"), VisitsErased(person="p")):
            await system.publish(event)
        await system.settled()
        rows = await system.fetch("recommend", "select person, item from seen")
        assert rows == [{"person": "q", "item": "bell"}]


async def test_a_model_is_trained_once_for_what_is_new(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[list[tuple[str, str]]] = []

    def similar(pairs: list[tuple[str, str]]) -> dict[str, dict[str, float]]:
        learned.append(pairs)
        return {"bell": {"boots": 0.9}}

    monkeypatch.setattr(recommend, "similar", similar)
    async with running(service) as system:
        await system.publish(visit("p", "bell", "boots"))
        await system.settled()
        await system.advance(125.0)
        assert learned == [[("p", "bell"), ("p", "boots")]]
        await system.publish(visit("q", "bell"))
        await system.settled()
        await system.advance(60.0)
        assert [len(pairs) for pairs in learned] == [2, 3]
        await system.publish(VisitsErased(person="p"))
        await system.settled()
        await system.advance(125.0)
        assert [len(pairs) for pairs in learned] == [2, 3, 1]
        first, *_ = system.announced(ModelTrained)
        assert first.similar == {"bell": {"boots": 0.9}}
