"""A view on both stores is what its history says, whatever happens while it is filled.

``OYEZ_TEST_EVENTS`` is the number of events that it is filled from; with a million, 20 kills.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import viewed

from oyez import tables
from oyez.errors import Stale
from oyez.ports import Changes, Store
from oyez.runtime import views
from oyez.runtime.audit import list_acts
from oyez.runtime.dead import list_dead
from oyez.runtime.process import ServiceProcess
from oyez.testing.ticks import until

TOML = """[system]
name = "test"
broker = "embedded:events.db"

[services.desk]
app = "desk:service"
store = "{store}"
"""
PARKED = "select count(*) as parked from oyez_inbox where state > 0"
DEADLINE = 1_000.0
"""Seconds that a test waits, at most, for what must come."""


async def caught_up(process: ServiceProcess) -> None:
    """Wait until the view has applied all that is in the streams.

    A batch at which the process died twice is parked, and its events run one by one.
    """
    (view,) = process.views.rebuilds
    end = time.monotonic() + DEADLINE
    while True:
        streams = await process.broker.streams()
        behind = [
            (stream, partition)
            for stream, partitions in streams.items()
            for partition, last in enumerate(await process.broker.ends(stream))
            if (stream, partition) not in view.lanes
            or view.lanes[stream, partition].position < last
        ]
        rows = await process.store.fetch(PARKED, {})
        if streams and not behind and not rows[0]["parked"]:
            return
        assert time.monotonic() < end, f"{behind} not read, {rows[0]['parked']} parked"
        await asyncio.sleep(0.02)


def kill_after(folder: Path, store_url: str, batches: int) -> None:
    """Fill the view in a process, and ``kill -9`` it after that many batches."""
    command = [sys.executable, viewed.__file__, str(folder), store_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            lines = [child.stdout.readline() for _ in range(batches)]
        finally:
            child.kill()
    assert all(lines), "it ended by itself"


@pytest.mark.timeout(1_200)
async def test_a_view_that_is_killed_while_it_is_filled_equals_its_history(
    tmp_path: Path, store_url: str
) -> None:
    count = int(os.environ.get("OYEZ_TEST_EVENTS", "100000"))
    await viewed.publish(tmp_path, count)
    for batches in (3, 40, 1, 77, 20) * max(1, count // 250_000):
        await asyncio.to_thread(kill_after, tmp_path, store_url, batches)
    async with viewed.process(tmp_path, store_url) as process:
        await caught_up(process)
        assert await list_dead(process.store) == []
        rows = await process.store.fetch('select * from order_weights order by "order"', {})
        expected = viewed.folded(count)
        assert len(rows) == len(expected)
        for found, wanted in zip(rows, expected, strict=True):
            assert found == wanted
        (kept,) = await process.store.fetch("select count(*) as rows from oyez_state", {})
        assert kept["rows"] == len(expected)


@pytest.mark.timeout(1_200)
async def test_a_version_is_filled_beside_the_live_one_and_equals_it(
    tmp_path: Path, store_url: str
) -> None:
    count = int(os.environ.get("OYEZ_TEST_EVENTS", "100000"))
    past = count * 9 // 10
    await viewed.publish(tmp_path, count, slice(past))
    async with viewed.process(tmp_path, store_url) as live:
        await caught_up(live)
        async with viewed.process(tmp_path, store_url, view=viewed.Again) as filling:
            beside, fed, step = 0, past, max(1, (count - past) // 20)
            for fed in range(past, count, step):
                await viewed.publish(tmp_path, count, slice(fed, fed + step))
                await caught_up(live)
                beside += filling.views.versions["order_weights"].active == 1
            assert fed + step >= count
            assert beside, "it was filled before the live one had applied anything new"
            await caught_up(filling)
            await active(filling, 2)
        await caught_up(live)
        expected = viewed.folded(count)
        for version in (1, 2):
            sql = f'select * from order_weights__{version} order by "order"'
            assert await live.store.fetch(sql, {}) == expected


async def test_a_version_takes_the_place_of_another_and_gives_it_back(
    tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "oyez.toml").write_text(TOML.format(store=store_url))
    assert await asyncio.to_thread(oyez, tmp_path, "view", "list") == "no views\n"
    await viewed.publish(tmp_path, 500)
    shown = 'select * from order_weights order by "order" limit 1'
    async with viewed.process(tmp_path, store_url) as process:
        await caught_up(process)
        (row,) = await process.store.fetch(shown, {})
        assert list(row) == ["order", "cents", "note", "times", "heavy", "weights"]
        (last,) = await process.store.fetch("select event_id, source from oyez_inbox limit 1", {})
        token = f"{last['source']};{last['event_id']}"
        found = await process.service.read(viewed.Orders, row["order"], after=token)
        assert found is not None
        assert viewed.view_of(viewed.Orders).values(found) == row
        unknown = f"{last['source']};{process.ambient.new_id()}"
        with pytest.raises(Stale):
            await process.service.read(viewed.Orders, row["order"], after=unknown, wait=0.05)
    async with viewed.process(tmp_path, store_url, view=viewed.Newer) as process:
        await active(process, 2)
        (row,) = await process.store.fetch(shown, {})
        assert list(row) == ["order", "cents"]
        assert await listed(tmp_path) == [(1, "old", 0, False), (2, "active", 0, True)]
        table = await asyncio.to_thread(oyez, tmp_path, "view", "list")
        assert "no replica reads it" in table
        said = await asyncio.to_thread(oyez, tmp_path, "view", "back", "desk", "order_weights")
        assert said == "order_weights shows version 1\n"
        await active(process, 1)
        assert await listed(tmp_path) == [(1, "active", 0, False), (2, "left", 0, True)]
        (row,) = await process.store.fetch(shown, {})
        assert len(row) == 6
        monkeypatch.setattr(views, "KEPT", 0.0)
        assert await views.drop_old(process.store, "order_weights", process.ambient) == []
        mark = {"name": "oyez:view:order_weights", "mark": "2", "now": 0.0}
        again = [*views.showing("order_weights", 2), (tables.CHANGE_MARK, [mark])]
        await process.store.begin().commit(Changes(writes=again))
        assert await views.drop_old(process.store, "order_weights", process.ambient) == [1]
        for table, column in (
            ("oyez_state", "kind"),
            ("oyez_inbox", "reader"),
            ("oyez_cursor", "reader"),
            ("oyez_migration", "name"),
        ):
            sql = f"select count(*) as rows from {table} where {column} like '%weights@1%'"
            assert await process.store.fetch(sql, {}) == [{"rows": 0}]
    async with viewed.process(tmp_path, store_url) as process:
        await caught_up(process)
        rows = await process.store.fetch('select * from order_weights__1 order by "order"', {})
        assert rows == viewed.folded(500)


def oyez(folder: Path, *arguments: str, code: int = 0, errors: bool = False) -> str:
    """What a command prints that ends with ``code``, on standard output or of ``errors``."""
    done = subprocess.run(
        [sys.executable, "-m", "oyez", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if errors else done.stdout


async def listed(folder: Path) -> list[tuple[int, str, int, bool]]:
    """What is listed of each version: its number, its state, what it lacks, whether it is read."""
    found = json.loads(await asyncio.to_thread(oyez, folder, "view", "list", "desk", "--json"))
    assert {each["view"] for each in found["views"]} == {"order_weights"}
    return [(v["version"], v["state"], v["behind"], v["read"]) for v in found["views"]]


async def active(process: ServiceProcess, version: int) -> None:
    """Wait until that version is the active one."""
    end = time.monotonic() + DEADLINE
    while process.views.versions["order_weights"].active != version:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def code_of(folder: Path, view: str) -> None:
    """Write the module of the service with a view of ``viewed``."""
    (folder / "desk.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(viewed.__file__).parent)!r})\n"
        f"import viewed\nservice = viewed.desk(viewed.{view})\n"
    )


async def kill_when(store: Store, folder: Path, sql: str, *arguments: str) -> None:
    """Kill a command as soon as a query of the store has rows."""
    command = [sys.executable, "-m", "oyez", *arguments]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as child:
        try:
            await until(lambda: store.fetch(sql, {}), 60.0)
        finally:
            child.kill()


@pytest.mark.timeout(300)
async def test_a_version_is_built_before_its_deploy(tmp_path: Path, store_url: str) -> None:
    """By a job beside the live version, that is killed on the way."""
    count, build = 40_000, ("view", "build", "desk", "order_weights")
    (tmp_path / "oyez.toml").write_text(TOML.format(store=store_url))
    code_of(tmp_path, "Again")
    await viewed.publish(tmp_path, count, slice(count - 1000))
    async with viewed.process(tmp_path, store_url) as live:
        await caught_up(live)
        part = "select 1 from oyez_cursor where reader = 'view:order_weights@2' and position > 500"
        await kill_when(live.store, tmp_path, part, *build)
        await viewed.publish(tmp_path, count, slice(count - 1000, count))
        said = await asyncio.to_thread(oyez, tmp_path, *build)
        expected = viewed.folded(count)
        assert said == f"order_weights version 2 has {len(expected)} rows\n"
        sql = 'select * from order_weights__2 order by "order"'
        assert await live.store.fetch(sql, {}) == expected
        marks = await live.store.fetch("select headers from oyez_inbox where headers <> ''", {})
        assert marks == [], "events of the view are parked"
        assert await listed(tmp_path) == [(1, "active", 0, True), (2, "filling", 0, False)]
        await caught_up(live)
        async with viewed.process(tmp_path, store_url, view=viewed.Again) as deployed:
            await active(deployed, 2)
            said = await asyncio.to_thread(oyez, tmp_path, *build, code=1, errors=True)
            assert "a running replica of desk fills version 2" in said


@pytest.mark.timeout(300)
async def test_a_version_that_is_built_can_be_swapped_in_at_once(
    tmp_path: Path, store_url: str
) -> None:
    build = ("view", "build", "desk", "order_weights", "--swap")
    (tmp_path / "oyez.toml").write_text(TOML.format(store=store_url))
    code_of(tmp_path, "Strict")
    await viewed.publish(tmp_path, 500)
    async with viewed.process(tmp_path, store_url) as live:
        await caught_up(live)
        said = await asyncio.to_thread(oyez, tmp_path, *build, code=1, errors=True)
        assert "events of version 2 failed, so it can't take its place" in said
        assert (await listed(tmp_path))[0][:2] == (1, "active")
        code_of(tmp_path, "Third")
        said = await asyncio.to_thread(oyez, tmp_path, *build)
        assert said.endswith("rows and is shown\n")
        await active(live, 3)
        rows = await live.store.fetch('select * from order_weights order by "order"', {})
        assert rows == viewed.folded(500)
        swapped, *built = await list_acts(live.store)
        assert (swapped.act, swapped.before, swapped.after) == (
            "view.swap",
            {"version": 1},
            {"version": 3},
        )
        assert [act.after for act in built] == [{"version": 3}, {"version": 2}]
        code_of(tmp_path, "Again")
        said = await asyncio.to_thread(oyez, tmp_path, *build, code=1, errors=True)
        assert "version 3 of order_weights is active, and the code has version 2" in said


async def test_drift_is_found_and_repaired(tmp_path: Path, store_url: str) -> None:
    (tmp_path / "oyez.toml").write_text(TOML.format(store=store_url))
    code_of(tmp_path, "Orders")
    await viewed.publish(tmp_path, 3000)
    await viewed.publish_to_another(tmp_path)
    async with viewed.process(tmp_path, store_url) as process:
        await caught_up(process)
        said = await asyncio.to_thread(oyez, tmp_path, "view", "verify", "desk", "order_weights")
        assert said == "150 rows of order_weights version 1 are what the history says\n"
        verify = ("view", "verify", "desk", "order_weights", "--json")
        said = await asyncio.to_thread(oyez, tmp_path, *verify, "--sample", "15")
        assert 0 < json.loads(said)["rows"] < 75
        table = "order_weights__1"
        drifts = [
            f"""update {table} set cents = -7 where "order" = 'o000001'""",
            f"""delete from {table} where "order" = 'o000002'""",
            f"""insert into {table} ("order", cents) values ('stray', 1)""",
        ]
        await process.store.begin().commit(Changes(writes=[(sql, [{}]) for sql in drifts]))
        said = await asyncio.to_thread(oyez, tmp_path, *verify, code=1)
        found = json.loads(said)["differences"]
        assert [(each["key"], each["field"]) for each in found] == [
            ("o000001", "cents"),
            ("o000002", ""),
            ("stray", ""),
        ]
        assert found[0]["found"] == -7
        said = await asyncio.to_thread(oyez, tmp_path, *verify, "--key", "o000003")
        assert json.loads(said)["rows"] == 1
        said = await asyncio.to_thread(oyez, tmp_path, *verify, "--repair")
        assert json.loads(said)["repaired"] == 3
        said = await asyncio.to_thread(oyez, tmp_path, *verify)
        assert json.loads(said)["differences"] == []
