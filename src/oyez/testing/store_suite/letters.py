"""Dead letters, the acts on them and their audit, and refused events of the outbox."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from oyez import tables
from oyez.ambient import SystemAmbient
from oyez.errors import ConstraintViolated, NotRedriven
from oyez.inspection.witness import HERE, know, recall
from oyez.ports import Changes, Writes
from oyez.runtime.audit import Actor, audited, list_acts
from oyez.runtime.dead import ALL, Wanted, discard, list_dead, list_groups, redrive
from oyez.service import Service
from oyez.tables import INBOX_RETENTION
from oyez.testing.store_suite.database import (
    Database,
    change_state,
    count_left,
    make_announcement,
    make_letter,
    make_parked,
    take_claim,
)

BY = Actor(who="suite", via="command", why="to see it")


class Letters(Database):
    """Dead letters, the acts on them and their audit, and refused events of the outbox."""

    async def test_an_act_and_its_audit_are_one_commit(self, tmp_path: Path) -> None:
        """Neither a failed act nor a failed audit leaves half of it."""
        ambient = SystemAmbient()
        async with self._open(tmp_path) as (store,):
            letters = [
                msgspec.structs.replace(make_letter(id_), time=ambient.now()) for id_ in "12"
            ]
            await store.begin().commit(Changes(dead=letters))
            first, second = [row["id"] for row in await list_dead(store)]
            await redrive(store, first, ambient, by=BY, data=b"{}")
            with pytest.raises(NotRedriven):
                await redrive(store, first, ambient, by=BY)
            (act,) = await list_acts(store)
            assert (act.who, act.via, act.act, act.target, act.reason) == (
                "suite",
                "command",
                "dead.redrive",
                f"dead letter {first}",
                "to see it",
            )
            assert (act.before["state"], act.after["state"]) == ("dead", "redriven")
            sql, (row,) = audited(BY, "dead.discard", f"dead letter {second}", 1.0)
            mark = {"id": second, "state": "discarded", "note": ""}
            half = Changes(writes=[(tables.MARK_LETTER, [mark]), (sql, [{**row, "act": None}])])
            with pytest.raises(ConstraintViolated):
                await store.begin().commit(half)
            assert [row["id"] for row in await list_dead(store)] == [second]
            assert await list_acts(store) == [act]
            assert await list_acts(store, target=f"dead letter {second}") == []
            assert await list_acts(store, before=act.id) == []

    async def test_dead_letters_are_grouped_and_chosen_by_what_they_share(
        self, tmp_path: Path
    ) -> None:
        """A store writes the cause of each with it, and answers by any part of what is asked."""
        kinds = [
            ("h", "t", "no order 17 of 'ann'", "a"),
            ("h", "t", "no order 4 of 'bob'", "b"),
            ("h", "t", "out of stock", "a"),
            ("h", "u", "no order 5 of 'cy'", "a"),
            ("g", "t", "no order 6 of 'di'", None),
            ("h", "t", "50%_off", "k" * 3_000),
        ]
        letters = [
            msgspec.structs.replace(
                make_letter(str(n)),
                handler=handler,
                type=kind,
                reason=reason,
                key=key,
                time=float(n),
            )
            for n, (handler, kind, reason, key) in enumerate(kinds)
        ]
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(dead=letters))
            first, *others = await list_groups(store)
            assert (first.handler, first.type, first.cause) == ("h", "t", "no order # of '…'")
            assert (first.letters, first.oldest, first.newest) == (2, 0.0, 1.0)
            assert [each.letters for each in others] == [1, 1, 1, 1]
            paged, after = [], None
            while page := await list_groups(store, after=after, limit=2):
                paged += page
                after = page[-1].letters, page[-1].group
            assert paged == [first, *others]

            async def chosen(**wanted: str) -> list[str]:
                rows = await list_dead(store, wanted=Wanted(**wanted))
                return [row["event_id"] for row in rows]

            assert await chosen(group=first.group) == ["0", "1"]
            assert await chosen(key="a") == ["0", "2", "3"]
            assert await chosen(key="k" * 3_000) == ["5"]
            assert await chosen(key="k" * 2_999) == []
            assert await chosen(handler="g") == ["4"]
            assert await chosen(type="u", key="a") == ["3"]
            assert await chosen(text="NO ORDER") == ["0", "1", "3", "4"]
            assert await chosen(text="%_") == ["5"]
            assert [row["event_id"] for row in await list_dead(store, wanted=ALL)] == [*"012345"]
            (group,) = await list_groups(store, wanted=Wanted(type="u"))
            assert group.letters == 1
            assert await list_groups(store, wanted=Wanted(text="nothing")) == []

    async def test_a_redrive_older_than_the_inbox_remembers_wants_to_be_meant(
        self, tmp_path: Path
    ) -> None:
        """Its duplicate could no longer be recognised (needs 17)."""
        ambient = SystemAmbient()
        limit = ambient.now() - INBOX_RETENTION
        letters = [
            msgspec.structs.replace(make_letter(str(at)), time=at)
            for at in (limit - 60, limit + 60)
        ]
        async with self._open(tmp_path) as (store,):
            await store.begin().commit(Changes(dead=letters))
            old, young = [row["id"] for row in await list_dead(store)]
            with pytest.raises(NotRedriven, match=r"older than 7 days.*--old"):
                await redrive(store, old, ambient, by=BY)
            assert (await count_left(store))["inbox"] == 0
            await redrive(store, young, ambient, by=BY)
            await redrive(store, old, ambient, by=BY, old=True)
            assert (await count_left(store))["inbox"] == 2
            for letter in (old, young):
                with pytest.raises(NotRedriven, match="already"):
                    await redrive(store, letter, ambient, by=BY, old=True)

    async def test_a_refused_event_of_the_outbox_holds_its_key_until_it_is_settled(
        self, tmp_path: Path
    ) -> None:
        """Redriven, it is the first of its key again; discarded, the others go on without it."""
        async with self._open(tmp_path) as (store,):
            ambient = SystemAmbient()
            others = msgspec.structs.replace(make_announcement(5), key="other")
            announced = [*map(make_announcement, range(1, 5)), others]
            await store.begin().commit(Changes(announced=announced))

            async def ids() -> list[str]:
                return [row.headers["id"] for row in await store.outbox(0, 0.0, 10)]

            async def refuse() -> int:
                first = (await store.outbox(0, 0.0, 1))[0]
                letter = msgspec.structs.replace(
                    make_letter(first.headers["id"]),
                    handler=tables.OUTBOX,
                    position=first.seq,
                    data=first.data,
                    time=ambient.now(),
                )
                writes: Writes = [
                    (tables.REFUSE, [{"seq": first.seq}]),
                    (tables.HOLD, [{"stream": "s", "key": "k"}]),
                ]
                await store.begin().commit(Changes(writes=writes, dead=[letter]))
                return int((await list_dead(store))[-1]["id"])

            letter = await refuse()
            assert await ids() == ["5"]
            held = await store.fetch(tables.HELD, {})
            assert held == [{"stream": "s", "key": "k", "state": tables.Outbox.REFUSED}]
            await store.begin().commit(Changes(announced=[make_announcement(6)]))
            await store.begin().commit(
                Changes(writes=[(tables.HOLD, [{"stream": "s", "key": "k"}])])
            )
            assert await ids() == ["5"]
            assert await store.fetch(tables.REFUSALS, {}) == [{"events": 1}]
            await redrive(store, letter, ambient, by=BY, data=b"mended")
            assert await ids() == ["1", "2", "3", "4", "5", "6"]
            assert (await store.outbox(0, 0.0, 1))[0].data == b"mended"
            letter = await refuse()
            assert await ids() == ["5"]
            await discard(store, letter, ambient, by=BY)
            assert await ids() == ["2", "3", "4", "5", "6"]
            assert await store.fetch(tables.HELD, {}) == []
            with pytest.raises(NotRedriven):
                await discard(store, letter, ambient, by=BY)

    async def test_what_waits_and_what_failed_is_found_by_key_and_by_id(
        self, tmp_path: Path
    ) -> None:
        """An event of a parked row, of a dead letter and of the outbox keeps its correlation id."""
        async with self._open(tmp_path) as (store,):
            await take_claim(store, "me")
            told = {"type": "t", "source": "/suite", "correlationid": "c"}
            parked = make_parked("0a1b2c3d", headers={"id": "0a1b2c3d", **told}, key="%")
            dead = msgspec.structs.replace(
                make_letter("9f8e7d6c"), headers={"id": "9f8e7d6c", **told}
            )
            other = msgspec.structs.replace(make_letter("11111111"), key="9")
            await store.begin().commit(Changes(parked=[parked], dead=[dead, other]))

            async def found(identity: str) -> tuple[list[str], list[str]]:
                known = await know(Service("suite"), store, identity)
                return [letter.event_id for letter in known.letters], [*known.correlations]

            assert await found("k") == (["9f8e7d6c"], ["c"])
            assert await found("9f8e7d6c") == (["9f8e7d6c"], ["c"])
            assert await found("c") == ([], ["c"])
            assert await found("0a1b2c3d") == ([], ["c"])
            assert await found("%") == ([], ["c"])
            assert await found("") == await found("none") == ([], [])
            number = str((await list_dead(store))[0]["id"])
            assert await found(number) == (["9f8e7d6c"], [])
            assert await found("9" * 30) == ([], [])
            for key, status in (("k", "running"), ("other", "ended")):
                await change_state(store, key, data=b"1", shape=1, status=status)
            sql = tables.SAGAS_OF_KEYS.replace("{keys}", ":key0, :key1")
            rows = await store.fetch(sql, {"kind": "Kind", "key0": "k", "key1": "none"})
            assert [(row["key"], row["status"]) for row in rows] == [("k", "running")]
            recalled = await recall(store, "c")
            assert sorted(node.id for node in recalled.events) == ["0a1b2c3d", "9f8e7d6c"]
            assert [node.places[HERE].position for node in recalled.events] == [1, 4]
