"""The console's audit: acts of several services, merged and paged."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import Placed
from test_console import SAME_SITE, TOKEN, World, desk, project, served

from oyez.console.access import Access
from oyez.console.answers import ActPage
from oyez.console.api import api
from oyez.console.app import console
from oyez.console.pages import audit
from oyez.console.system import Answer, System
from oyez.inspection.reach import Gap
from oyez.runtime.admin import admin
from oyez.runtime.audit import Act, Actor, record
from oyez.testing import running

HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J"


def act(number: int, **fields: Any) -> Act:
    return Act(
        **{
            "id": number, "time": float(number), "who": "ada", "via": "command",
            "act": "dead.discard", "target": f"dead letter {number}", "reason": "",
            "before": {}, "after": {}, **fields,
        }
    )  # fmt: skip


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A desk of which three acts are known, and a service that does not answer."""
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    async with running(desk()) as system:
        process = system.processes["desk"]
        for number in (1, 2, 3):
            by = Actor(who=f"eva{number}", via="command", why=HOSTILE)
            await record(process.store, by, "dead.redrive", f"dead letter {number}", 1.0)
        app = admin(process, token=TOKEN, metrics=str, details=lambda: api(process))
        async with served(app) as at:
            found = project(tmp_path, desk=at, silent="127.0.0.1:1")
            access = Access(found.ambient, name="till", token=TOKEN)
            asks = System(found)
            page = console(asks, access, found.ambient)
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app=page), base_url="https://console"
            ) as client:
                SAME_SITE["Origin"] = "https://console"
                made = World(client, system, access, page)
                await made.sign_in()
                yield made
            await asks.close()


async def test_acts_are_shown_the_newest_first_and_what_is_silent_is_a_gap(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SHOWN", 2)
    page = (await world.client.get("/audit")).text
    assert re.findall(r"eva\d", page) == ["eva3", "eva2"]
    assert 'href="/dead/desk/3"' in page
    assert "silent at 127.0.0.1:1" in page
    assert "<script>alert" not in page
    assert not {"\u202e", "\x1b"} & set(page)
    following = re.search(r'rel="next" href="([^"]+)"', page)
    assert following
    page = (await world.client.get(following[1].replace("&amp;", "&"))).text
    assert re.findall(r"eva\d", page) == ["eva1"]
    assert 'rel="next"' not in page
    page = (await world.client.get("/audit?service=silent")).text
    assert "There is none" not in page
    one = (await world.client.get("/audit?target=dead+letter+2")).text
    assert re.findall(r"eva\d", one) == ["eva2"]
    assert (await world.client.get("/audit?service=nobody")).status_code == 404


async def test_an_act_of_the_console_is_in_it_with_who_is_signed_in(world: World) -> None:
    await world.system.publish(Placed(order="bad1"))
    await world.system.settled()
    data = {"csrf": await world.csrf(), "why": "no need"}
    path = "/dead/desk/1/discard"
    done = await world.client.post(path, data=data, headers=SAME_SITE)
    assert done.status_code == 303
    page = (await world.client.get("/audit?service=desk")).text
    first = page[page.index("<tbody>") : page.index("</tr>", page.index("<tbody>"))]
    for text in ("dead.discard", "operator", "by <bdi>console", "no need", "discarded"):
        assert text in first


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=30),
    st.integers(1, 7),
)
def test_page_by_page_no_act_is_left_out_or_shown_twice(
    acts: list[tuple[str, int]], shown: int
) -> None:
    stored: dict[str, list[Act]] = {"a": [], "b": [], "c": []}
    for number, (name, step) in enumerate(acts, 1):
        time = step + (stored[name][-1].time if stored[name] else 0)
        stored[name].append(act(number, time=float(time)))
    before: dict[str, int] | None = audit.positions([], stored)
    found: list[tuple[str, Act]] = []
    while before is not None:
        answers = []
        for name, below in before.items():
            rest = [each for each in stored[name][::-1] if each.id < below]
            page = ActPage(acts=tuple(rest[:shown]), more=len(rest) > shown)
            answers.append(Answer(service=name, at="", value=page))
        told = audit.merged(answers, before, shown)
        found += told.acts
        before = told.after
    assert sorted(each.id for _, each in found) == list(range(1, len(acts) + 1))
    times = [each.time for _, each in found]
    assert times == sorted(times, reverse=True)


def test_a_gap_takes_nothing_from_others() -> None:
    gap = Gap(part="service", name="b", cause="unreachable", effect="b", reason="no")
    good = Answer(service="a", at="", value=ActPage(acts=(act(1),), more=False))
    silent: Answer[ActPage] = Answer(service="b", at="", gap=gap)
    told = audit.merged([good, silent], {"a": 9, "b": 9}, 5)
    assert (len(told.acts), told.after) == (1, None)


def test_what_an_act_changed() -> None:
    told = act(
        1,
        before={"state": "dead", "handler": "take", "attempts": 3},
        after={"state": "redriven", "handler": "take", "changed": ["order"]},
    )
    found = [(each.name, each.before, each.after) for each in audit.changes(told)]
    assert found == [("state", "dead", "redriven"), ("changed", None, '["order"]')]


def test_where_an_act_leads() -> None:
    assert audit.link("orders", act(1, target="dead letter 12")) == "/dead/orders/12"
    there = audit.link("orders", act(1, target="saga Trip a b/.."))
    assert there == "/sagas/orders/Trip/instance?key=a+b%2F.."
    assert audit.link("orders", act(1, target="view history")) == ""


def test_positions_are_read_from_an_address() -> None:
    given = ["a.7", "nobody.1", "b.x", "b", f"b.{'9' * 30}"]
    assert audit.positions(given, ["a", "b"]) == {"a": 7, "b": audit.LATEST}
