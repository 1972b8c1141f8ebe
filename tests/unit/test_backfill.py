"""Backfills: what a service has, announced to one that lacks the history of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from parts import BY

from oyez import Event, Service, Transaction, View, applies, tables
from oyez.cli import root
from oyez.errors import (
    BackfillFailed,
    ConfigurationError,
    DeclarationError,
    HistoryMissing,
    StateConflict,
    StoreUnavailable,
)
from oyez.inspection.beginning import _position
from oyez.ports import Changes
from oyez.runtime.audit import list_acts
from oyez.runtime.backfill import ATTEMPTS, CHUNK, Walk, Walked, mark_of, walked_for
from oyez.runtime.views import begun_mark, lacks
from oyez.testing import System, running


class Known(Event, type="test.known", key="one"):
    one: str


class Keyless(Event, type="test.keyless"):
    one: str


class Ones(View, table="ones", key="one"):
    one: str
    times: int = 0

    @applies
    def known(self, event: Known) -> None:
        self.times += 1


def owner(count: int, each: int = CHUNK) -> tuple[Service, list[str]]:
    """A service that has so many, and returns some at once; and what it was asked for."""
    service, asked = Service("owner"), list[str]()

    @service.backfill(Known)
    async def all_of_them(tx: Transaction, after: str) -> list[Known]:
        asked.append(after)
        first = int(after) + 1 if after else 0
        return [Known(one=str(number)) for number in range(first, min(first + each, count))]

    return service, asked


def desk(name: str = "desk") -> Service:
    service = Service(name)
    service.view(Ones)
    return service


def walk_of(system: System, recipient: str = "desk") -> Walk:
    """A walk as another process begins it."""
    process = system.processes["owner"]
    return Walk(
        process.service.backfills["test.known"],
        recipient,
        broker=system.broker,
        store=process.store,
        announcer=process.announcer,
    )


class TestWalk:
    """`Walk`, chunk by chunk."""

    async def test_only_the_one_who_asked_gets_it(self) -> None:
        service, asked = owner(1_200, each=700)
        other = desk("other")
        async with running(service, desk(), other) as system:
            assert await system.backfill("owner", Known, recipient="desk") == 1_200
            await system.settled()
            assert asked == ["", "499", "999", "1199"]
            found = await system.fetch("desk", "select count(*) as n, max(times) as t from ones")
            assert found == [{"n": 1_200, "t": 1}]
            assert await system.fetch("other", "select * from ones") == []
            assert {each.recipient for each in system.history()} == {"desk"}

    async def test_it_goes_on_where_it_was_interrupted(self) -> None:
        service, asked = owner(1_200)
        async with running(service, desk()) as system:
            first = walk_of(system)
            assert not await first.begin(by=BY)
            assert await first.chunk()
            second = walk_of(system)
            assert await second.begin(by=BY)
            assert second.walked.announced == CHUNK
            while await second.chunk():
                pass
            await system.settled()
            assert asked == ["", "499", "999", "1199"]
            assert await system.fetch("desk", "select max(times) as t from ones") == [{"t": 1}]
            (walked,) = (await walked_for(system.processes["owner"].store, "desk")).values()
            assert (walked.announced, walked.done) == (1_200, True)
            assert await walked_for(system.processes["owner"].store, "des") == {}
            assert not await walk_of(system).begin(by=BY)  # a new one, from the beginning
            acts = await list_acts(system.processes["owner"].store)
            assert [(act.act, act.before) for act in acts] == [
                ("backfill.begin", {}),
                ("backfill.begin", {"announced": CHUNK}),
                ("backfill.begin", {}),
            ]
            assert acts[0].target == "backfill of test.known for desk"

    async def test_two_processes_share_the_work(self) -> None:
        service, asked = owner(3_000)
        async with running(service, desk()) as system:
            walks = [walk_of(system), walk_of(system)]
            for each in walks:
                await each.begin(by=BY)

            async def walk(one: Walk) -> None:
                while await one.chunk():
                    await asyncio.sleep(0)

            await asyncio.gather(*map(walk, walks))
            await system.settled()
            assert len(asked) == 7
            found = await system.fetch("desk", "select count(*) as n, max(times) as t from ones")
            assert found == [{"n": 3_000, "t": 1}]

    async def test_where_it_began_is_kept(self) -> None:
        service, _ = owner(10)
        async with running(service, desk(), partitions=2) as system:
            await system.publish(Known(one="a"), service="owner")
            first = walk_of(system)
            await first.begin(by=BY)
            assert sum(first.walked.begins) == 1
            await system.publish(Known(one="b"), service="owner")
            second = walk_of(system)
            await second.begin(by=BY)
            assert second.walked.begins == first.walked.begins


class TestFaults:
    """What the function of a backfill can do wrong; nothing of it is announced."""

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            ([Known(one="7")], "does not move forward: after '7' it returned rows that end with"),
            ([Known(one="7"), Known(one="8")], "does not move forward: after '8' it returned"),
            (None, "returned NoneType: expected a list of Known"),
            ([Known(one="7"), Keyless(one="8")], "returned a Keyless: expected each to be a Known"),
            (ValueError("no table"), "raised ValueError: no table"),
        ],
    )
    async def test_it_fails_by_name(self, answer: Any, said: str) -> None:
        service = Service("owner")

        @service.backfill(Known)
        async def known(tx: Transaction, after: str) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        async with running(service, desk()) as system:
            with pytest.raises(BackfillFailed, match=r"the backfill of test\.known") as caught:
                await system.backfill("owner", Known, recipient="desk")
            assert said in str(caught.value)
            await system.settled()
            assert len(system.announced(Known)) == (len(answer) if "forward" in said else 0)

    async def test_a_circle_is_found(self) -> None:
        service, pages = Service("owner"), {"": "b", "b": "c", "c": "a", "a": "b"}

        @service.backfill(Known)
        async def known(tx: Transaction, after: str) -> list[Known]:
            return [Known(one=pages[after])]

        async with running(service, desk()) as system:
            with pytest.raises(
                BackfillFailed, match="after 'a' it returned rows that end with 'b'"
            ):
                await system.backfill("owner", Known, recipient="desk")
            assert len(system.announced(Known)) <= 3

    async def test_a_busy_store_is_tried_again(self) -> None:
        service, failures = Service("owner"), [StateConflict("busy"), StateConflict("busy")]

        @service.backfill(Known)
        async def known(tx: Transaction, after: str) -> list[Known]:
            if failures:
                raise failures.pop()
            return [] if after else [Known(one="1")]

        async with running(service, desk()) as system:
            walking = asyncio.create_task(system.backfill("owner", Known, recipient="desk"))
            while not walking.done():
                await system.ambient.advance(0.1)
            assert walking.result() == 1
            failures += [StoreUnavailable("gone")] * ATTEMPTS
            walking = asyncio.create_task(system.backfill("owner", Known, recipient="desk"))
            while not walking.done():
                await system.ambient.advance(1.0)
            with pytest.raises(StoreUnavailable):
                walking.result()

    def test_declarations(self) -> None:
        service, _ = owner(1)
        assert [kind.name for kind in service.publishes] == ["test.known"]
        with pytest.raises(DeclarationError, match=r"two backfills of test\.known: leave one"):

            @service.backfill(Known)
            async def again(tx: Transaction, after: str) -> list[Known]: ...

        with pytest.raises(DeclarationError, match="a backfill is an async def"):

            @Service("x").backfill(Known)
            def plain(tx: Transaction, after: str) -> list[Known]: ...

        with pytest.raises(DeclarationError, match="takes two parameters"):

            @Service("x").backfill(Known)
            async def three(tx: Transaction, after: str, more: int) -> list[Known]: ...

        with pytest.raises(DeclarationError, match=r"test\.keyless has no key"):

            @Service("x").backfill(Keyless)
            async def keyless(tx: Transaction, after: str) -> list[Keyless]: ...


async def test_a_version_that_began_after_a_backfill_is_whole_when_it_has_read_it() -> None:
    """The active version may stand still before the end of the backfill."""
    async with running(desk(), partitions=2) as system:
        await system.publish(Known(one="a"))
        await system.settled()
        store = system.processes["desk"].store
        assert await lacks(store.fetch, "ones", 1, 0) == {}
        rows = await store.fetch(tables.CURSORS, {"reader": "view:ones@1"})
        ends = [row["position"] for row in sorted(rows, key=lambda row: row["partition"])]
        for until, behind in ((ends, {}), ([each + 1 for each in ends], {"behind": 2})):
            mark = (
                tables.SET_MARK,
                [
                    {
                        "name": begun_mark("view:ones@1"),
                        "mark": f'{{"until": {{"test.outside": {until}}}}}',
                        "now": 0.0,
                    }
                ],
            )
            await store.begin().commit(Changes(writes=[mark]))
            assert await lacks(store.fetch, "ones", 1, 0) == behind


TOML = """[system]
name = "shop"
broker = "embedded:.oyez/events.db"

[services.owner]
app = "backfilled:owner"

[services.desk]
app = "backfilled:desk"

[services.deaf]
app = "backfilled:deaf"
"""
CODE = """
from oyez import Event, Service, Transaction

class Known(Event, type="shop.known", key="one"):
    one: str

owner, desk, deaf = Service("owner"), Service("desk"), Service("deaf")

@owner.backfill(Known)
async def known(tx: Transaction, after: str) -> list[Known]:
    return []

@desk.on(Known)
async def hear(event: Known) -> None: ...
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody", "Known", "--for", "desk"), "there is no service 'nobody'; there are: deaf,"),
        (("owner", "Known", "--for", "nobody"), "there is no service 'nobody'; there are: deaf,"),
        (("owner", "Knwon", "--for", "desk"), "owner offers no backfill of Knwon; it offers Known"),
        (("desk", "Known", "--for", "owner"), "desk offers no backfill of Known; it offers none"),
        (("owner", "shop.known", "--for", "deaf"), "deaf handles no shop.known: declare a handler"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "oyez.toml").write_text(TOML)
    (tmp_path / "backfilled.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = CliRunner().invoke(root, ["backfill", *arguments])
    assert isinstance(ran.exception, ConfigurationError)
    assert said in str(ran.exception)


def test_the_mark_names_event_and_recipient() -> None:
    assert mark_of("shop.known", "desk") == "oyez:backfill:shop.known:desk"


def test_what_came_after_a_backfill_must_still_be_there() -> None:
    walked = Walked(begins=[812, 7], done=True)
    assert _position(walked, "shop.owner", 0, 812) == 812
    assert _position(walked, "shop.owner", 0, 3) == 812
    for partition, missing in ((1, 8), (2, 1)):  # the last was added since
        with pytest.raises(HistoryMissing, match="run the backfill again"):
            _position(walked, "shop.owner", partition, missing)
