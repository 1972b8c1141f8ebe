"""Acts on a service, on each kind of store: dead letters by the many, sagas, and their audit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oyez import Event, Service, tables
from oyez.ambient import SystemAmbient, Timeout
from oyez.errors import InvalidEvent, StoreError
from oyez.inspection.schedule import cancel, list_later
from oyez.ports import Announcement, Changes, DeadLetter, Store
from oyez.runtime.audit import Actor, changed_fields, list_acts
from oyez.runtime.dead import Wanted, discard, list_dead, list_groups, redrive
from oyez.runtime.housekeeping import AUDIT_RETENTION, Housekeeping
from oyez.runtime.redrive import (
    Preview,
    Step,
    discard_letters,
    handlers_of,
    preview_letters,
    redrive_letters,
)
from oyez.runtime.replay import begin_replay
from oyez.runtime.reports import Reports
from oyez.signals import Signals
from oyez.stores import connect
from oyez.testing import VirtualAmbient
from oyez.testing.crash import run_and_kill

BY = Actor(who="ann@desk", via="console", why="mended")

_CHILD = """
import asyncio, sys
from pathlib import Path
from oyez.ambient import SystemAmbient
from oyez.runtime.audit import Actor
from oyez.runtime.dead import Wanted
from oyez.runtime.redrive import redrive_letters
from oyez.stores import connect

async def main():
    store = connect(sys.argv[1], SystemAmbient(), root=Path(sys.argv[2]))
    await store.open()
    by = Actor(who="child", via="command")
    def told(step):
        print(step.letter, flush=True)
    await redrive_letters(store, Wanted(), SystemAmbient(), by=by, told=told)

asyncio.run(main())
"""


class Sold(Event, type="till.sold", key="sale"):
    sale: str
    cents: int = 7


def desk() -> Service:
    service = Service("desk")

    @service.on(Sold)
    async def book(event: Sold) -> None:
        raise AssertionError("a dry run runs nothing")

    return service


@pytest.fixture
async def store(store_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    found = connect(store_url, SystemAmbient(), root=tmp_path)
    await found.open()
    yield found
    await found.close()


async def bury(store: Store, *sales: str, **changed: Any) -> list[int]:
    """Add a dead letter for each; return the ids of all dead letters."""
    letters = []
    for number, sale in enumerate(sales):
        headers = {
            "specversion": "1.0", "id": f"e-{sale}", "source": "/till/x", "type": "till.sold",
            "datacontenttype": "application/json",
        }  # fmt: skip
        fields: dict[str, Any] = {
            "event_id": f"e-{sale}", "source": "/till/x", "type": "till.sold", "handler": "book",
            "stream": "till.x", "partition": 0, "position": number + 1, "key": sale,
            "reason": f"failed 3 of 3 attempts: ValueError: no sale {number}", "traceback": "",
            "attempts": 3, "history": [], "headers": headers,
            "data": json.dumps({"sale": sale}).encode(), "time": SystemAmbient().now(),
        }  # fmt: skip
        letters.append(DeadLetter(**{**fields, **changed}))
    await store.begin().commit(Changes(dead=letters))
    return [row["id"] for row in await list_dead(store, limit=10_000)]


async def parked(store: Store) -> int:
    (row,) = await store.fetch("select count(*) as n from oyez_inbox where state > 0", {})
    return int(row["n"])


async def test_all_of_a_group_are_redriven_with_an_act_each(store: Store) -> None:
    ids = await bury(store, "a", "b", "c")
    await bury(store, "d", reason="another")
    (group, _) = await list_groups(store)
    steps: list[Step] = []
    settled = await redrive_letters(
        store, Wanted(group=group.group), SystemAmbient(), by=BY, told=steps.append
    )
    assert (settled.done, settled.refusals, settled.stopped) == (3, 0, False)
    assert steps == [Step(id_, None, n, 3) for n, id_ in enumerate(ids, 1)]
    assert [row["key"] for row in await list_dead(store)] == ["d"]
    acts = await list_acts(store)
    assert [act.target for act in acts] == [f"dead letter {id_}" for id_ in reversed(ids)]
    assert {(act.who, act.via, act.act, act.reason) for act in acts} == {
        ("ann@desk", "console", "dead.redrive", "mended")
    }


async def test_what_is_refused_is_an_answer_and_leaves_no_act(store: Store) -> None:
    ids = await bury(store, "a", "b")
    wanted = [ids[0], 999, ids[1]]
    settled = await redrive_letters(
        store, wanted, SystemAmbient(), by=BY, handlers={"renamed"}, handler=None
    )
    assert (settled.done, settled.refusals) == (0, 3)
    assert "a handler that its service no longer has" in settled.refused[0].why
    assert settled.refused[1].why == "there is no dead letter 999"
    assert await list_acts(store) == []
    again = await redrive_letters(
        store, wanted, SystemAmbient(), by=BY, handlers={"renamed"}, handler="renamed"
    )
    assert (again.done, again.refusals) == (2, 1)
    (_, act) = await list_acts(store)
    assert (act.before["handler"], act.after["handler"]) == ("book", "renamed")


async def test_letters_that_die_meanwhile_are_not_among_them(store: Store) -> None:
    await bury(store, "a", "b")
    more: list[asyncio.Task[list[int]]] = []

    def told(step: Step) -> None:
        more.append(asyncio.create_task(bury(store, f"late {step.count}")))

    settled = await redrive_letters(store, Wanted(), SystemAmbient(), by=BY, told=told)
    await asyncio.gather(*more)
    assert settled.done == 2
    assert [row["key"] for row in await list_dead(store)] == ["late 1", "late 2"]


async def test_it_is_stopped_between_two_letters_also_while_it_waits(store: Store) -> None:
    ambient, stopped = SystemAmbient(), asyncio.Event()
    await bury(store, "a", "b", "c")
    told = asyncio.Event()
    work = asyncio.create_task(
        redrive_letters(
            store,
            Wanted(),
            ambient,
            by=BY,
            rate=0.001,
            told=lambda step: told.set(),
            stopped=stopped,
        )
    )
    async with asyncio.timeout(30.0):
        await told.wait()
        stopped.set()
        settled = await work
    assert (settled.done, settled.stopped) == (1, True)
    assert [row["key"] for row in await list_dead(store)] == ["b", "c"]


class Paced(SystemAmbient):
    """A clock that stands still but for the waits, which it notes."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.clock

    def timeout(self, seconds: float | None) -> Timeout:
        assert seconds is not None
        self.waits.append(seconds)
        self.clock += seconds
        return asyncio.timeout(0)


async def test_a_rate_is_kept_whatever_a_letter_takes(store: Store) -> None:
    ambient = Paced()
    await bury(store, *"abcde")

    def told(step: Step) -> None:
        ambient.clock += (0.5, 3.0, 0.5, 0.5, 0.5)[step.count - 1]

    await redrive_letters(store, Wanted(), ambient, by=BY, rate=0.5, told=told)
    assert ambient.waits == [1.5, 0.5, 1.5]


async def test_a_dry_run_shows_what_the_handler_would_get_and_does_nothing(store: Store) -> None:
    ids = await bury(store, "a")
    await bury(store, "b", data=b'{"sale": 3}')
    await bury(store, "c", handler="gone")
    await bury(store, "d", handler=tables.OUTBOX)
    looks = preview_letters(store, Wanted(), desk(), SystemAmbient())
    first, second, third, fourth = [each async for each in looks]
    assert first == Preview(
        letter=ids[0], handler="book", event="Sold", key="a", data=b'{"sale":"a","cents":7}'
    )
    assert second.refused == "$.sale: Expected `str`, got `int`"
    assert "no longer has" in third.refused
    assert (fourth.handler, fourth.event) == (tables.OUTBOX, "till.sold")
    again = preview_letters(store, [second.letter], desk(), SystemAmbient(), data=b'{"sale":"b"}')
    (mended,) = [each async for each in again]
    assert (mended.refused, mended.event) == ("", "Sold")
    assert handlers_of(desk()) == {"book"}
    assert (len(await list_dead(store)), await parked(store)) == (4, 0)
    assert await list_acts(store) == []


async def test_edited_data_is_in_the_audit_by_the_names_of_its_fields(store: Store) -> None:
    (letter,) = await bury(store, "ann@example.org")
    with pytest.raises(InvalidEvent, match="one dead letter"):
        await redrive_letters(store, Wanted(), SystemAmbient(), by=BY, data=b"{}")
    with pytest.raises(InvalidEvent, match="not JSON"):
        await redrive_letters(store, [letter], SystemAmbient(), by=BY, data=b"{")
    data = b'{"sale":"bob@example.org","cents":1}'
    await redrive_letters(store, [letter], SystemAmbient(), by=BY, data=data)
    (act,) = await list_acts(store)
    assert act.after == {
        "state": "redriven", "handler": "book", "data": "replaced", "changed": ["sale", "cents"]
    }  # fmt: skip
    (row,) = await store.fetch("select * from oyez_audit", {})
    assert "example.org" not in repr(row)


async def test_a_discard_needs_a_reason(store: Store) -> None:
    ids = await bury(store, "a", "b")
    silent = msgspec.structs.replace(BY, why=" ")
    with pytest.raises(InvalidEvent, match="why: state why"):
        await discard_letters(store, ids, SystemAmbient(), by=silent)
    settled = await discard_letters(store, ids, SystemAmbient(), by=BY)
    assert settled.done == 2
    assert {act.act for act in await list_acts(store)} == {"dead.discard"}


async def test_nothing_is_too_long_or_too_odd_for_the_audit(store: Store) -> None:
    (letter,) = await bury(store, "a")
    data = json.dumps({f"{'n' * 200}{n}": n for n in range(400)}).encode()
    by = Actor(who="\0\ud800" * 999, via="console", why="ü\0" * 999)
    await redrive_letters(store, [letter], SystemAmbient(), by=by, data=data)
    (act,) = await list_acts(store)
    assert (len(act.who), len(act.reason)) == (200, 500)
    assert list(act.after) == ["left out"]


async def test_the_audit_is_kept_for_a_year(store: Store) -> None:
    ids = await bury(store, "a", "b")
    ambient = VirtualAmbient()
    for letter in ids:
        await redrive_letters(store, [letter], ambient, by=BY, old=True)
        await ambient.advance(AUDIT_RETENTION - 60.0)
    housekeeping = Housekeeping(store, ambient, Reports("desk", Signals()))
    await housekeeping.keep()
    assert [act.target for act in await list_acts(store)] == [f"dead letter {ids[1]}"]


async def test_an_act_that_can_not_be_recorded_is_not_done(store: Store) -> None:
    ambient = SystemAmbient()
    (letter,) = await bury(store, "a")
    sent = Announcement(stream="till.desk", key="a", headers={}, data=b"{}", due=9e9, event_id="e")
    gone: Any = [("alter table oyez_audit rename to gone", [{}])]
    await store.begin().commit(Changes(writes=gone, announced=[sent]))
    later = await list_later(store)
    for act in (
        redrive(store, letter, ambient, by=BY),
        discard(store, letter, ambient, by=BY),
        cancel(store, "e", ambient.now(), by=BY),
        begin_replay(store, "again", "book from beginning", ambient, by=BY),
    ):
        with pytest.raises(StoreError, match="oyez_audit"):
            await act
    assert [row["id"] for row in await list_dead(store)] == [letter]
    assert await parked(store) == 0
    assert await list_later(store) == later
    assert await store.fetch(tables.ACTIVE, {"name": "oyez:replay:again"}) == []


async def test_letters_of_a_former_version_get_their_cause(store: Store) -> None:
    await bury(store, *(f"s{n}" for n in range(1_200)))
    (known,) = await list_groups(store)
    forget: Any = ("update oyez_dead set cause = ''", [{}])
    await store.begin().commit(Changes(writes=[forget]))
    await Housekeeping(store, VirtualAmbient(), Reports("desk", Signals())).keep()
    assert await list_groups(store) == [known]


async def test_a_killed_process_leaves_an_act_for_each_redrive_and_no_other(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    await bury(store, *(f"s{n}" for n in range(2_000)))
    said = await asyncio.to_thread(run_and_kill, _CHILD, store_url, str(tmp_path), lines=40)
    begun = store.begin()
    await begun.fetch("select 1 as one", {}, [])  # what the server still does for it ends first
    await begun.rollback()
    sql = "select id from oyez_dead where state = 'redriven' order by id"
    redriven = [f"dead letter {row['id']}" for row in await store.fetch(sql, {})]
    acts = await list_acts(store, limit=5_000)
    assert len(said) <= len(redriven) < 2_000
    assert [act.target for act in reversed(acts)] == redriven
    assert await parked(store) == len(redriven)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        (b'{"a":1,"b":2}', b'{"b":2,"a":1}', []),
        (b'{"a":1,"b":{"c":1}}', b'{"a":1,"b":{"c":2},"d":0}', ["b", "d"]),
        (b'{"a":1}', b'{"a":true}', ["a"]),
        (b'{"a":null}', b"{}", ["a"]),
        (b"{", b'{"a":1}', ["$"]),
        (None, b"[1]", ["$"]),
    ],
)
def test_changed_fields(old: bytes | None, new: bytes, names: list[str]) -> None:
    assert changed_fields(old, new) == names


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (Wanted(), "COVERING INDEX oyez_dead_cause (state=?)"),
        (Wanted(handler="book", type="till.sold"), "COVERING INDEX oyez_dead_cause (state=?)"),
        (Wanted(key="a"), "INDEX oyez_dead_key (<expr>=?)"),
        (Wanted(text="no sale"), "INDEX oyez_dead_state (state=?)"),
    ],
    ids=repr,
)
async def test_groups_are_counted_by_an_index(tmp_path: Path, wanted: Wanted, index: str) -> None:
    store = connect("sqlite:store.db", SystemAmbient(), root=tmp_path)
    await store.open()
    sql = f"explain query plan {tables.letter_groups(wanted.asked)}"
    asked = {**wanted.asked, "letters": 9, "after": "", "limit": 9}
    plan = [row["detail"] for row in await store.fetch(sql, asked)]
    assert any(step.endswith(index) for step in plan), plan
    await store.close()
