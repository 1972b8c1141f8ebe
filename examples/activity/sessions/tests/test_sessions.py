"""Sessions alone: what one visit is, and that nothing follows who is forgotten."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from oyez.testing import Running
from oyez.window import window_type
from sessions.events import Clicked, CustomerErased, VisitEnded, VisitsErased
from sessions.service import MOST, Visit, service

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def click(item: str, minute: float = 0.0) -> Clicked:
    return Clicked(person="p", item=item, at=NOON + timedelta(minutes=minute))


def visit_of(person: str) -> Visit:
    found: Visit = window_type(Visit).state.new(person)
    return found


def test_given_a_visit_when_an_item_is_clicked_again_then_it_is_there_once() -> None:
    visit = Visit()
    for item in ("bell", "boots", "bell"):
        visit.add(click(item))
    assert (visit.clicks, visit.items) == (3, ["bell", "boots"])


def test_given_a_crawler_when_it_clicks_on_then_its_first_items_count() -> None:
    visit = Visit()
    for number in range(MOST + 50):
        visit.add(click(str(number)))
    assert (visit.clicks, len(visit.items)) == (MOST + 50, MOST)


def test_given_a_visit_when_its_person_is_erased_then_that_is_told_and_no_more() -> None:
    visit = visit_of("p")
    visit.add(click("bell"))
    visit.add(CustomerErased(person="p", at=NOON))
    visit.add(click("boots"))
    assert (visit.clicks, visit.items) == (0, [])
    assert visit.close() == VisitsErased(person="p")


def test_given_two_visits_when_one_is_erased_and_they_join_then_nothing_is_kept() -> None:
    for first, second in ((click("bell"), CustomerErased(person="p", at=NOON)),
                          (CustomerErased(person="p", at=NOON), click("bell"))):  # fmt: skip
        visit, other = visit_of("p"), visit_of("p")
        visit.add(first)
        other.add(second)
        visit.join(other)
        assert (visit.erased, visit.clicks, visit.items) == (True, 0, [])


async def test_half_an_hour_without_a_click_ends_a_visit(running: Running) -> None:
    async with running(service) as system:
        begin = datetime.fromtimestamp(system.ambient.now(), UTC)

        async def look(item: str) -> None:
            at = datetime.fromtimestamp(system.ambient.now(), UTC)
            await system.publish(Clicked(person="p", item=item, at=at))
            await system.settled()

        await look("bell")
        await system.advance(1_700.0)
        await look("boots")
        await system.advance(1_900.0)
        await look("quill")
        await system.advance(1_900.0 + 902.0)
        ended = [(each.clicks, each.items) for each in system.announced(VisitEnded)]
        assert ended == [(2, ["bell", "boots"]), (1, ["quill"])]
        assert system.announced(VisitEnded)[0].start == begin


async def test_that_a_person_is_erased_comes_behind_the_visits(running: Running) -> None:
    async with running(service) as system:
        now = datetime.fromtimestamp(system.ambient.now(), UTC)
        yesterday = Clicked(person="p", item="bell", at=now - timedelta(days=1))
        for event in (yesterday, Clicked(person="p", item="boots", at=now),
                      CustomerErased(person="p", at=now)):  # fmt: skip
            await system.publish(event)
            await system.settled()
        await system.advance(3_000.0)
        told = [each.type for each in system.history() if each.source.endswith("/sessions")]
        assert told == ["activity.visit.ended", "activity.visits.erased"]
        assert system.announced(VisitEnded)[0].items == ["bell"]
