"""Clicks alone: each once, under a pseudonym, sealed, and forgotten."""

from __future__ import annotations

import pytest
from cryptography.fernet import Fernet, InvalidToken

from clicks.events import Clicked, CustomerErased, ItemViewed
from clicks.service import service
from oyez.testing import Running

ADA = {
    "id": "1", "name": "ada@example.org", "item": "bell", "title": "A bell", "kind": "view",
    "at": "2026-11-01T12:00:00Z", "query": "bells for ada@example.org",
}  # fmt: skip


async def test_a_search_opens_with_the_key_of_its_person_alone(running: Running) -> None:
    async with running(service) as system, system.http("clicks") as client:
        await client.post("/clicks", json=[ADA, {**ADA, "id": "2", "name": "bob@example.org"}])
        key = (await client.get("/keys/ada@example.org")).json()["key"]
        await system.settled()
        hers, his = system.announced(Clicked)
        assert Fernet(key).decrypt(hers.query).decode() == ADA["query"]
        with pytest.raises(InvalidToken):
            Fernet(key).decrypt(his.query)


async def test_a_click_that_is_sent_twice_is_told_once(running: Running) -> None:
    async with running(service) as system, system.http("clicks") as client:
        answers = [await client.post("/clicks", json=sent) for sent in ([ADA, ADA], [ADA])]
        assert [(each.status_code, each.json()) for each in answers] == [
            (202, {"accepted": 1}),
            (202, {"accepted": 0}),
        ]
        await client.post("/clicks", json=[{**ADA, "id": "2", "query": ""}])
        await system.settled()
        first, second = system.announced(Clicked)
        assert first.person == second.person
        assert second.query == ""
        assert [view.title for view in system.announced(ItemViewed)] == ["A bell", "A bell"]


async def test_no_event_names_a_person(running: Running) -> None:
    async with running(service) as system, system.http("clicks") as client:
        await client.post("/clicks", json=[ADA])
        await client.delete("/people/ada@example.org")
        await system.settled()
        events = system.history()
        assert len(events) == 3
        assert not any("ada" in f"{each.headers()} {each.data.decode()}" for each in events)


async def test_who_is_forgotten_comes_back_as_somebody_else(running: Running) -> None:
    async with running(service) as system, system.http("clicks") as client:
        await client.post("/clicks", json=[ADA])
        known = (await client.get("/keys/ada@example.org")).json()
        assert (await client.delete("/people/ada@example.org")).status_code == 202
        assert (await client.delete("/people/ada@example.org")).status_code == 404
        assert (await client.get("/keys/ada@example.org")).status_code == 404
        await client.post("/clicks", json=[{**ADA, "id": "2"}])
        await system.settled()
        (erased,) = system.announced(CustomerErased)
        before, after = system.announced(Clicked)
        assert before.person == erased.person == known["person"] != after.person


@pytest.mark.parametrize(
    ("field", "value"), [("at", "2026-11-01T12:00:00"), ("kind", "look"), ("id", ""), ("age", 7)]
)
async def test_a_wrong_click_is_refused_with_its_field(
    running: Running, field: str, value: object
) -> None:
    async with running(service) as system, system.http("clicks") as client:
        answer = await client.post("/clicks", json=[{**ADA, field: value}])
        assert answer.status_code == 422
        assert field in answer.json()["detail"] or "timezone" in answer.json()["detail"]
        assert await system.fetch("clicks", "select * from click") == []


async def test_no_clicks_are_no_clicks(running: Running) -> None:
    async with running(service) as system, system.http("clicks") as client:
        assert (await client.post("/clicks", json=[])).json() == {"accepted": 0}
        assert (await client.post("/clicks", content=b"{")).status_code == 422
