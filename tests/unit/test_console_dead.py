"""The console's dead letters: causes across services, filters, dry runs, and jobs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from parts import Placed
from test_console import READ, SAME_SITE, TOKEN, project, served

from oyez import Retry, Service, testing
from oyez.console.access import Access
from oyez.console.answers import GroupPage, Job
from oyez.console.api import api
from oyez.console.app import console
from oyez.console.jobs import AT_ONCE
from oyez.console.pages.dead import SHOWN, begins, merged
from oyez.console.system import Answer, System
from oyez.observe.metrics import Metrics
from oyez.ports import Changes
from oyez.runtime.admin import admin
from oyez.runtime.audit import list_acts
from oyez.runtime.dead import Group, list_dead
from oyez.testing import running

ORIGIN = {**SAME_SITE, "Origin": "https://console"}


def desk(fails: Callable[[str], str]) -> Service:
    service = Service("desk")

    @service.on(Placed, retry=Retry(attempts=1))
    async def take(event: Placed) -> None:
        why = fails(event.order)
        if why:
            raise ValueError(why)

    @service.on(Placed)
    async def count(event: Placed) -> None:
        pass

    return service


class Till:
    """A desk with dead letters, its console, and a browser that is signed in."""

    def __init__(self, client: httpx.AsyncClient, system: testing.System, broken: set[str]) -> None:
        self.client = client
        self.system = system
        self.broken = broken
        """The orders that still fail."""
        self.store = system.processes["desk"].store

    async def get(self, path: str) -> str:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    async def post(self, path: str, **fields: str) -> httpx.Response:
        found = re.search(r'name="csrf" value="([^"]+)"', await self.get("/dead"))
        assert found
        form = {"csrf": found[1], **fields}
        return await self.client.post(path, data=form, headers=ORIGIN)

    async def ended(self, path: str) -> str:
        """Return the page of a job once it has ended."""
        async with asyncio.timeout(20):
            while "<dt>Ended</dt>" not in (page := await self.get(path)):
                await self.system.advance(1.0)
                await asyncio.sleep(0.01)
        return page

    async def dead(self) -> list[str]:
        return sorted(row["key"] for row in await list_dead(self.store))


@asynccontextmanager
async def till(folder: Path, orders: list[str], token: str = TOKEN) -> AsyncIterator[Till]:
    broken = set(orders)

    def fails(order: str) -> str:
        return f"no {order.rstrip('0123456789')} of order {order}" if order in broken else ""

    async with running(desk(fails)) as system:
        process = system.processes["desk"]
        app = admin(process, token=TOKEN, metrics=Metrics().render, details=lambda: api(process))
        async with served(app) as at:
            for order in orders:
                await system.publish(Placed(order=order))
            await system.settled()
            found = project(folder, desk=at)
            access = Access(found.ambient, name="till", token=TOKEN, read_token=READ, secure=True)
            asks = System(found)
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app=console(asks, access, found.ambient)),
                base_url="https://console",
            ) as client:
                await client.post("/sign-in", data={"token": token}, headers=ORIGIN)
                yield Till(client, system, broken)
            await asks.close()


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)


Started = Callable[[str], Awaitable[httpx.Response]]


async def test_letters_are_grouped_found_and_paged(tmp_path: Path) -> None:
    orders = [f"box{n}" for n in range(SHOWN + 3)] + ["tape1"]
    async with till(tmp_path, orders) as it:
        page = await it.get("/dead")
        assert page.count('<td class="n" data-label="Letters">') == 2
        assert f'data-label="Letters">{SHOWN + 3}<' in page
        (group,) = re.findall(r'href="/dead/desk\?group=([0-9a-f]{16})"', page)
        assert "tape" not in await it.get("/dead?text=BOX")
        assert "There is none like this" in await it.get("/dead?text=%25")
        assert "There is none like this" in await it.get("/dead?handler=count")
        letters = await it.get(f"/dead/desk?group={group}")
        assert "no box of order" in letters
        assert "tape1" not in letters
        assert letters.count('<th scope="row">') == SHOWN
        (following,) = re.findall(r'rel="next" href="([^"]+)"', letters)
        rest = await it.get("/dead/desk" + following.replace("&amp;", "&"))
        assert rest.count('<th scope="row">') == 3
        assert 'rel="next"' not in rest
        assert (await it.get("/dead/desk?key=tape1")).count('<th scope="row">') == 1


async def test_a_dry_run_shows_what_would_be_handed_to_whom(tmp_path: Path) -> None:
    async with till(tmp_path, ["box1", "box2"]) as it:
        page = await it.get("/dead/desk/many?type=shop.placed")
        assert "<h1>2 dead letters of desk</h1>" in page
        assert "<strong>desk.<bdi>take</bdi></strong> would get" in page
        assert page.count("&#34;order&#34;:&#34;box") == 2
        assert "<strong>desk.<bdi>count</bdi></strong>" in await it.get("/dead/desk/1?to=count")
        refused = await it.get("/dead/desk/1?to=gone")
        assert "a handler that its service no longer has" not in refused
        assert "Its handler is one that the service no longer has: choose another." in refused
        assert "--handler" not in refused
        assert 'id="redrive"' not in refused
        assert await it.dead() == ["box1", "box2"]


async def test_a_letter_shows_what_was_done_to_it(tmp_path: Path) -> None:
    async with till(tmp_path, ["box1", "box2"]) as it:
        edited = await it.post("/dead/desk/1/edit", data='{"order": 5}')
        assert "It would fail again: <span><bdi>$.order: Expected `str`, got `int`" in edited.text
        await it.post("/dead/desk/1/redrive", data='{"order": "good"}', to="count")
        shown = await it.get("/dead/desk/1")
        assert "<bdi>dead.redrive</bdi> by <bdi>operator</bdi> (<bdi>console</bdi>)" in shown
        assert "&#34;changed&#34;" in shown or '"changed"' in shown.replace("&#39;", "'")
        again = await it.post("/dead/desk/1/redrive")
        assert (again.status_code, "redriven already" in again.text) == (409, True)
        assert (await it.post("/dead/desk/2/discard", why=" ")).status_code == 422


async def test_a_group_is_redriven_by_a_job_that_nobody_has_to_watch(tmp_path: Path) -> None:
    async with till(tmp_path, ["box1", "box2", "tape1", "box3"]) as it:
        (group,) = re.findall(r'href="/dead/desk\?group=(\w+)"', await it.get("/dead"))
        it.broken.clear()
        answer = await it.post("/dead/desk/many", act="redrive", group=group, rate="2")
        assert answer.status_code == 303
        here = answer.headers["location"]
        assert "under way" in await it.get("/dead")
        page = await it.ended(here)
        assert "Done." in page
        assert "<dt>Settled</dt><dd>3</dd>" in page
        assert "<dt>By" not in page
        await it.system.settled()
        assert await it.dead() == ["tape1"]
        acts = await list_acts(it.store)
        assert {(act.who, act.via, act.act) for act in acts} == {
            ("operator", "console", "dead.redrive")
        }
        assert "under way" not in await it.get("/dead")


async def test_a_rate_bounds_and_a_job_is_stopped_between_two_letters(tmp_path: Path) -> None:
    async with till(tmp_path, [f"box{n}" for n in range(5)]) as it:
        it.broken.clear()
        answer = await it.post("/dead/desk/many", act="redrive", rate="0.001")
        here = answer.headers["location"]
        async with asyncio.timeout(20):
            while "<dt>Settled</dt><dd>1</dd>" not in await it.get(here):
                await asyncio.sleep(0.01)
        assert (await it.post(f"{here}/stop")).status_code == 303
        page = await it.ended(here)
        assert "<strong>Stopped</strong> <span>after 1 of 5" in page
        assert len(await it.dead()) == 4


async def test_progress_is_told_until_the_end(tmp_path: Path) -> None:
    async with till(tmp_path, ["box1"]) as it:
        answer = await it.post("/dead/desk/many", act="redrive", rate="")
        here = answer.headers["location"]
        async with asyncio.timeout(20), it.client.stream("GET", f"{here}/live") as told:
            lines = [line async for line in told.aiter_lines()]
        assert "event: over" in lines
        assert any("<progress" in line for line in lines)


async def test_what_is_refused_is_told_and_stays_dead(tmp_path: Path) -> None:
    async with till(tmp_path, ["box1", "box2"]) as it:
        answer = await it.post("/dead/desk/many", act="redrive", to="gone")
        page = await it.ended(answer.headers["location"])
        assert "<dt>Refused</dt><dd>2</dd>" in page
        assert page.count("choose another.") == 2
        assert await it.dead() == ["box1", "box2"]


async def test_many_are_discarded_for_a_reason(tmp_path: Path) -> None:
    async with till(tmp_path, ["box1", "box2", "tape1"]) as it:
        assert (await it.post("/dead/desk/many", act="discard", text="box")).status_code == 422
        answer = await it.post("/dead/desk/many", act="discard", text="box", why="a test order")
        page = await it.ended(answer.headers["location"])
        assert "<dt>Settled</dt><dd>2</dd>" in page
        assert "a test order" in page
        assert await it.dead() == ["tape1"]
        assert {act.reason for act in await list_acts(it.store)} == {"a test order"}


async def test_jobs_are_few_at_once(tmp_path: Path) -> None:
    async with till(tmp_path, ["box1", "box2"]) as it:
        for _ in range(AT_ONCE):
            slow = await it.post("/dead/desk/many", act="redrive", rate="0.001", key="none")
            assert slow.status_code == 303
        # Jobs without a letter end at once; these have two, and the second waits.
        await it.ended(slow.headers["location"])
        heres = []
        for _ in range(AT_ONCE):
            answer = await it.post("/dead/desk/many", act="redrive", rate="0.001")
            heres.append(answer.headers["location"])
        more = await it.post("/dead/desk/many", act="redrive")
        assert (more.status_code, "are under way" in more.text) == (409, True)
        for here in heres:
            await it.post(f"{here}/stop")
            await it.ended(here)
        assert (await it.post("/dead/desk/many", act="redrive")).status_code == 303


@pytest.mark.parametrize("rate", ["0", "-1", "x", "nan", "inf", "2000000"])
async def test_a_rate_is_a_number_above_zero(tmp_path: Path, rate: str) -> None:
    async with till(tmp_path, ["box1"]) as it:
        answer = await it.post("/dead/desk/many", act="redrive", rate=rate)
        assert answer.status_code == 422
        assert await it.dead() == ["box1"]


async def test_a_reader_sees_what_a_redrive_would_do_and_can_not_do_it(tmp_path: Path) -> None:
    async with till(tmp_path, ["box1"], READ) as it:
        page = await it.get("/dead/desk/many")
        assert "would get" in page
        assert "<button class=" not in page.partition("<main")[2]
        assert (await it.post("/dead/desk/many", act="redrive")).status_code == 403
        for missing in ("x", "0123456789abcdef"):
            assert (await it.client.get(f"/dead/desk/jobs/{missing}")).status_code == 409
        assert (await it.client.get("/dead/desk/jobs/a..b")).status_code == 404
        assert (await it.client.get("/dead?letters=1&after=x")).status_code == 404


def test_causes_of_all_services_are_one_list_in_pages() -> None:
    made = {
        name: [
            Group(
                group=f"{n % 50:016x}", handler="h", type="t", cause="c", letters=(n * 7) % 5 + 1,
                oldest=0.0, newest=0.0, example=n,
            )
            for n in range(start, start + 90)
            if n % 50 or n == start
        ]
        for name, start in (("a", 0), ("b", 0), ("c", 25))
    }  # fmt: skip
    for groups in made.values():
        names = {(g.letters, g.group): g for g in groups}
        groups[:] = sorted(names.values(), key=lambda group: (-group.letters, group.group))
    everything = sorted(
        ((-g.letters, g.group, name) for name, groups in made.items() for g in groups)
    )
    after: dict[str, tuple[int, str] | None] = dict.fromkeys(made)
    paged = []
    while True:
        answers = []
        for name, place in after.items():
            rest = [
                g
                for g in made[name]
                if place is None or (-g.letters, g.group) > (-place[0], place[1])
            ]
            page = GroupPage(groups=tuple(rest[:SHOWN]), more=len(rest) > SHOWN, jobs=())
            answers.append(Answer(service=name, at="", value=page))
        causes, last = merged(answers)
        paged += [cause.place for cause in causes]
        if last is None:
            break
        after = begins(made, last.group.letters, last.group.group, last.service)
    assert paged == everything


def test_the_first_group_of_all_has_none_before_it() -> None:
    assert begins(["a", "b"], 3, "0" * 16, "a") == {"a": (3, "0" * 16), "b": (3, "")}


async def test_a_job_can_not_be_begun_wrongly(tmp_path: Path) -> None:
    async with till(tmp_path, ["box1"]) as it:
        process = it.system.processes["desk"]
        app = api(process)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://desk"
        ) as client:
            for body in (
                b"{}",
                b'{"act": "burn", "who": "ada"}',
                b'{"act": "redrive"}',
                b'{"act": "discard", "who": "ada"}',
                b'{"act": "redrive", "who": "ada", "rate": -1}',
                b'{"act": "redrive", "who": "ada", "rate": 1e9}',
            ):
                assert (await client.post("/jobs", content=body)).status_code == 422
            body = b'{"act": "discard", "who": "ada", "why": "old", "wanted": {"key": "none"}}'
            job = msgspec.json.decode((await client.post("/jobs", content=body)).content, type=Job)
            assert (job.who, job.wanted.key) == ("ada", "none")


async def test_the_overview_tells_of_stuck_sagas_and_leads_to_a_cause(tmp_path: Path) -> None:
    async with till(tmp_path, ["box1", "box2", "tape1"]) as it:
        sql = """insert into oyez_state (kind, key, version, shape, data, changed, status)
          values ('Fulfilment', :key, 1, 1, '{}', 0, :status)"""
        rows = [{"key": f"o{n}", "status": status} for n, status in enumerate(
            ["stuck", "running", "stuck", "ended"]
        )]  # fmt: skip
        await it.store.begin().commit(Changes(writes=[(sql, rows)]))
        page = await it.get("/")
        assert "<strong><bdi>2 Fulfilment are stuck</bdi></strong>" in page
        assert "sagas of desk that need a person, such as o0" in page
        assert 'href="/sagas/desk/Fulfilment?status=stuck"' in page
        assert "2 dead letters of desk.take" in page
        assert re.search(r'href="/dead/desk\?group=[0-9a-f]{16}"', page)
        assert re.search(r'href="/dead/desk/\d"', page)
