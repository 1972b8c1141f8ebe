"""Profiles: its rules alone, and its pages together with the service that has the keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

import clicks.service
from oyez import GONE
from oyez.testing import Running
from profiles import service as profiles
from profiles.events import Clicked, CompanionsFound, CustomerErased, HourCounted, ModelTrained
from profiles.service import Person, best, cosine, service

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def click(item: str, kind: str = "view", query: str = "") -> Clicked:
    return Clicked(person="p", item=item, kind=kind, at=NOON, query=query)


def test_given_a_person_when_an_item_is_clicked_again_then_it_is_the_last_seen() -> None:
    person = Person(person="p")
    for event in (click("bell"), click("boots", "purchase"), click("bell", query="x")):
        person.clicked(event)
    assert (person.clicks, person.bought, person.seen) == (3, 1, ["boots", "bell"])
    assert person.searches == ["x"]


def test_given_a_person_when_erased_then_the_row_goes() -> None:
    assert Person(person="p").erased(CustomerErased(person="p")) is GONE


def test_given_counts_when_items_are_compared_then_what_everybody_sees_weighs_less() -> None:
    visits = {"bell": 4.0, "boots": 4.0, "scroll": 100.0}
    found = cosine({"bell": {"boots": 2.0, "scroll": 3.0, "gone": 1.0}}, visits)
    assert found == {"bell": pytest.approx({"boots": 0.5, "scroll": 0.15})}


def test_given_companions_whose_visits_are_not_known_yet_when_compared_then_they_wait() -> None:
    together = {"bell": {"boots": 1.0}, "boots": {"bell": 1.0}}
    assert cosine(together, {"boots": 3.0}) == {"bell": {}, "boots": {}}
    assert cosine(together, {"bell": 0.0, "boots": 3.0}) == {"bell": {}, "boots": {}}


def test_given_neighbours_when_some_are_seen_then_the_others_are_shown_best_first() -> None:
    neighbours = {"a": {"b": 0.9, "c": 0.2, "d": 0.1}, "b": {"c": 0.1, "d": 0.5}}
    assert best(neighbours, ["a", "b"]) == ["d", "c"]
    assert best(neighbours, ["a", "b"], 1) == ["d"]
    assert best({}, ["a"]) == []


async def test_the_page_of_a_person_until_she_is_forgotten(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(clicks.service.service, service) as system:

        async def key_of(name: str) -> dict[str, str] | None:
            async with system.http("clicks") as client:
                found: dict[str, str] | None = (await client.get(f"/keys/{name}")).json()
                return found

        monkeypatch.setattr(profiles, "key_of", key_of)
        sent = [_sent("1", "bell", query="bells"), _sent("2", "boots", kind="purchase")]
        async with system.http("clicks") as client:
            await client.post("/clicks", json=sent)
        await system.publish(
            CompanionsFound(item="bell", visits=2.0, companions={"quill": 1.0}), service="recommend"
        )
        await system.publish(
            CompanionsFound(item="quill", visits=2.0, companions={"bell": 1.0}), service="recommend"
        )
        await system.settled()
        async with system.http("profiles") as client:
            page = await client.get("/people/ada@example.org")
            assert page.json() == {
                "clicks": 2,
                "bought": 1,
                "recent": ["The boots", "The bell"],
                "searches": ["bells"],
                "also": ["quill"],
                "by": "what is seen together",
            }
            monkeypatch.setattr(profiles, "CHALLENGED", 1)
            await system.publish(
                ModelTrained(version="7", similar={"boots": {"cloak": 0.5}}),
                service="recommend",
            )
            await system.settled()
            page = await client.get("/people/ada@example.org")
            assert (page.json()["also"], page.json()["by"]) == (["cloak"], "the model of 7")
            async with system.http("clicks") as other:
                await other.delete("/people/ada@example.org")
            await system.settled()
            assert (await client.get("/people/ada@example.org")).status_code == 404
        assert await system.fetch("profiles", "select * from person") == []


async def test_the_live_page_shows_what_is_trending(running: Running) -> None:
    async with running(service) as system:
        for item, views in (("bell", 3), ("boots", 7)):
            await system.publish(HourCounted(item=item, end=NOON, views=views), service="sessions")
        await system.publish(click("bell"), service="clicks")
        await system.settled()
        shown = await profiles.now()
        assert (shown["people"], shown["clicks"], shown["live"]) == (1, 1, 1)
        assert [(each["title"], each["views"]) for each in shown["trending"]] == [("", 7), ("", 3)]


def _sent(number: str, item: str, kind: str = "view", query: str = "") -> dict[str, Any]:
    return {
        "id": number, "name": "ada@example.org", "item": item, "title": f"The {item}", "kind": kind,
        "at": NOON.isoformat(), "query": query,
    }  # fmt: skip


async def test_a_page_without_its_keys_is_asked_for_again(running: Running) -> None:
    async with running(service) as system, system.http("profiles") as client:
        answer = await client.get("/people/ada@example.org")  # nothing listens where the keys are
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
