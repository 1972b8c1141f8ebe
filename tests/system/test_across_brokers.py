"""`oyez flow` and `oyez tail` on a system of two brokers: two files, and bridges between them.

The clocks publish on the system's broker, the service `counter` has one of its own. The bridge
`over` carries ticks to it, the bridge `back` carries its tocks to the system's broker.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from oyez.cli import flow, tail
from oyez.config import load
from oyez.partitioning import partition_of
from oyez.ports import Broker
from oyez.project import Project
from oyez.testing.ticks import Ticks, ticking, until

ONE, TWO = "embedded:.oyez/one.db", "embedded:.oyez/two.db"
NAMES = tuple(f"clock-{n}" for n in range(40))
BRIDGES = f"""
[bridges.over]
source = "{ONE}"
target = "{TWO}"
streams = ["ticks.clock"]
lease = 1.0

[bridges.back]
source = "{TWO}"
target = "{ONE}"
streams = ["ticks.counter"]
"""


@asynccontextmanager
async def apart(tmp_path: Path) -> AsyncIterator[Ticks]:
    """The system; nothing of it runs but the clocks."""
    async with ticking(tmp_path / "ticks", broker=ONE) as ticks:
        file = ticks.root / "oyez.toml"
        own = f'[services.counter]\nbroker = "{TWO}"\n'
        file.write_text(file.read_text().replace("[services.counter]\n", own) + BRIDGES)
        yield ticks


def asked(ticks: Ticks, *arguments: str) -> tuple[str, str]:
    """What a command that must succeed prints, and what it warns of."""
    ran = ticks.run(*arguments)
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    assert "Traceback" not in ran.stderr
    return ran.stdout, ran.stderr


def tick_of(ticks: Ticks, key: str) -> dict[str, Any]:
    """The only event that began something under the key, as `oyez flow` tells of it."""
    (journey,) = json.loads(asked(ticks, "flow", key, "--json")[0])["journeys"]
    (root,) = journey["events"]
    found: dict[str, Any] = root
    return found


def places(event: dict[str, Any]) -> list[str]:
    return [place["broker"] for place in event["places"]]


def states(event: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    return {each["handler"]: (each["state"], each["bridge"]) for each in event["handlers"]}


async def crossed(ticks: Ticks, key: str) -> None:
    """Return when the tick and its tock stand on both brokers."""

    async def both() -> bool:
        root = tick_of(ticks, key)
        events = [root, *root["events"]]
        return len(events) == 2 and all(len(event["places"]) == 2 for event in events)

    await until(both, why=ticks._last_words)


async def ended(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 30) == 0


async def test_a_journey_over_two_brokers_is_one_tree(tmp_path: Path) -> None:
    async with apart(tmp_path) as ticks:
        ticks.start_replica()
        ticks.start_replica("bridge", "over")
        ticks.start_replica("bridge", "back")
        await ticks.tick("clock-0")
        await ticks.all_seen("clock-0")
        await crossed(ticks, "clock-0")
        root = tick_of(ticks, "clock-0")
        (tock,) = root["events"]
        assert states(root) == {"count": ("handled", None)}
        assert states(tock) == {"hear": ("handled", None)}
        # First where it was announced: the clocks on the system's broker, the service on its own.
        assert places(root) == [ONE, TWO]
        assert places(tock) == [TWO, ONE]
        for event in (root, tock):
            home = event["places"][0]
            assert (event["partition"], event["position"]) == (home["partition"], home["position"])
        text, warned = asked(ticks, "flow", "clock-0")
        assert text.count("ticks.tick") == text.count("ticks.tock") == 1
        assert "on embedded, embedded:counter" in text
        assert "on embedded:counter, embedded" in text
        assert warned == ""


async def test_what_is_published_by_hand_goes_to_the_broker_of_the_stream_s_service(
    tmp_path: Path,
) -> None:
    async with apart(tmp_path) as ticks:
        body = ('{"name": "by-hand", "number": 1}', "--key", "by-hand")
        said = json.loads(asked(ticks, "publish", "ticks.tock", *body, "--json")[0])
        assert said["stream"] == "ticks.counter"
        root = tick_of(ticks, "by-hand")
        assert places(root) == [TWO]
        assert states(root) == {"hear": ("pending", None)}
        ticks.start_replica()

        async def heard() -> bool:
            return states(tick_of(ticks, "by-hand")) == {"hear": ("handled", None)}

        await until(heard, why=ticks._last_words)


async def test_what_has_not_come_is_told_by_the_place_on_the_service_s_own_broker(
    tmp_path: Path,
) -> None:
    async with apart(tmp_path) as ticks:
        # With all of them in one partition there, the service is far ahead of where the next tick
        # stands here.
        async with Project(load(ticks.root)).opened_broker("counter", create=True) as own:
            await own.create(ticks.stream, 1)
        bridge = ticks.start_replica("bridge", "over")
        counter = ticks.start_replica()
        before = [name for name in NAMES if partition_of(name, 8) != 0]
        await ticks.tick(*before)
        await ticks.all_seen(*before)
        await ended(bridge)
        late = next(name for name in NAMES if name not in before)
        await ticks.tick(late)
        root = tick_of(ticks, late)
        assert places(root) == [ONE]
        assert states(root) == {"count": ("pending", "over")}
        text, warned = asked(ticks, "flow", late)
        assert "→ counter.count  not copied yet (bridge over)" in text
        assert warned == ""

        await ended(counter)
        ticks.start_replica("bridge", "over")

        async def carried() -> bool:
            return places(tick_of(ticks, late)) == [ONE, TWO]

        await until(carried, why=ticks._last_words)
        root = tick_of(ticks, late)
        assert [(p["partition"], p["position"]) for p in root["places"]] == [
            (0, 1),
            (0, len(before) + 1),
        ]
        assert states(root) == {"count": ("pending", None)}
        assert "→ counter.count  not read yet" in asked(ticks, "flow", late)[0]

        ticks.start_replica()
        await ticks.all_seen(*before, late)
        assert states(tick_of(ticks, late)) == {"count": ("handled", None)}


async def test_a_broker_that_was_never_made_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    async with apart(tmp_path) as ticks:
        await ticks.tick("clock-0")
        text, warned = asked(ticks, "flow", "clock-0")
        assert "not copied yet (bridge over)" in text
        assert warned.count("\n") == 1
        assert "broker embedded:counter is left out" in warned
        assert "two.db does not exist yet" in warned
        text, warned = asked(ticks, "tail", "--from-start", "--limit", "1")
        assert "embedded ticks.clock[" in text
        assert "broker embedded:counter is left out" in warned
        assert not (ticks.root / ".oyez" / "two.db").exists()


async def test_what_was_carried_and_is_gone_is_not_called_late(tmp_path: Path) -> None:
    async with apart(tmp_path) as ticks:
        bridge = ticks.start_replica("bridge", "over")
        await ticks.tick("clock-0")

        async def carried() -> bool:
            return places(tick_of(ticks, "clock-0")) == [ONE, TWO]

        await until(carried, why=ticks._last_words)
        await ended(bridge)
        for file in (ticks.root / ".oyez").glob("two.db*"):
            file.unlink()
        assert states(tick_of(ticks, "clock-0")) == {}


def test_where_no_broker_can_tell_anything_it_fails_as_with_one(tmp_path: Path) -> None:
    ticks = Ticks(tmp_path, broker=ONE)
    with (tmp_path / "oyez.toml").open("a") as toml:
        toml.write(BRIDGES)
    for arguments in (("flow", "clock-0"), ("tail",)):
        ran = ticks.run(*arguments)
        assert ran.returncode == 1
        first, second = ran.stderr.splitlines()
        assert "is left out" in first
        assert "one.db does not exist yet: `oyez dev` makes it" in second
    assert not (tmp_path / ".oyez").exists()


async def test_a_broker_without_history_is_named_and_the_rest_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with apart(tmp_path) as ticks:
        async with Project(load(ticks.root)).opened_broker("counter", create=True):
            pass
        await ticks.tick("clock-0")
        connect = Project.connect

        def forgetful(project: Project, url: str, group: str = "") -> Broker:
            broker = connect(project, url, group)
            if url in forgetting:
                broker.capabilities = msgspec.structs.replace(broker.capabilities, history=False)
            return broker

        forgetting = {TWO}
        monkeypatch.setattr(Project, "connect", forgetful)
        monkeypatch.setenv("OYEZ_PROJECT", str(ticks.root))
        monkeypatch.setattr("sys.path", [*sys.path])
        run = CliRunner().invoke
        told = await asyncio.to_thread(run, flow.command, ["clock-0"])
        assert told.exit_code == 0
        assert "broker embedded:counter is left out: embedded keeps no history" in told.stderr
        assert "not copied yet (bridge over)" in told.stdout
        arguments = ["--from-start", "--limit", "1"]
        told = await asyncio.to_thread(run, tail.command, arguments)
        assert told.exit_code == 0
        assert "broker embedded:counter is left out: --from-start: this broker" in told.stderr
        assert "ticks.tick" in told.stdout
        forgetting = {ONE, TWO}
        told = await asyncio.to_thread(run, flow.command, ["clock-0"])
        assert "embedded keeps no history" in str(told.exception)


async def test_tail_shows_a_copied_event_on_each_broker_and_names_them(tmp_path: Path) -> None:
    async with apart(tmp_path) as ticks:
        ticks.start_replica()
        ticks.start_replica("bridge", "over")
        await ticks.tick("clock-0")
        await ticks.all_seen("clock-0")
        lines = asked(ticks, "tail", "--from-start", "--limit", "3", "--json")[0].splitlines()
        found = [json.loads(line) for line in lines]
        assert [(each["type"], each["broker"]) for each in found] == [
            ("ticks.tick", ONE),
            ("ticks.tick", TWO),
            ("ticks.tock", TWO),
        ]
        assert found[0]["id"] == found[1]["id"]
        text, _ = asked(ticks, "tail", "clock", "--from-start", "--limit", "2")
        first, second = text.splitlines()
        assert " embedded ticks.clock[" in first
        assert " embedded:counter ticks.clock[" in second
        # Only one of them has this stream.
        text, warned = asked(ticks, "tail", "counter", "--from-start", "--limit", "1")
        assert " embedded:counter ticks.counter[" in text
        assert warned == ""
        ran = ticks.run("tail", "nobody")
        assert "there is no stream 'nobody'; there are: ticks.clock, ticks.counter" in ran.stderr


class Tail:
    """An ``oyez tail`` that runs, from the oldest event on."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def told(self, count: int) -> set[tuple[str, str, str]]:
        """Type, key and broker of the next events."""
        assert self.process.stdout is not None
        found = set()
        for _ in range(count):
            line = json.loads(await asyncio.wait_for(self.process.stdout.readline(), 60))
            found.add((line["type"], line["key"], line["broker"]))
        return found


@asynccontextmanager
async def tailing(ticks: Ticks, *arguments: str) -> AsyncIterator[Tail]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "oyez", "tail", *arguments, "--json", "--from-start"),
        env=ticks.environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Tail(process)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_tail_follows_all_brokers_live(tmp_path: Path) -> None:
    async with apart(tmp_path) as ticks:
        ticks.start_replica()
        bridge = ticks.start_replica("bridge", "over")
        await ticks.tick("clock-0")
        await ticks.all_seen("clock-0")
        async with tailing(ticks) as every, tailing(ticks, "counter") as own:
            for key in ("clock-0", "clock-1"):
                if key == "clock-1":
                    await ticks.tick(key)
                assert await every.told(3) == {
                    ("ticks.tick", key, ONE),
                    ("ticks.tick", key, TWO),
                    ("ticks.tock", key, TWO),
                }
                assert await own.told(1) == {("ticks.tock", key, TWO)}
            # A stream that begins on one broker after it was known on the other.
            ticks.start_replica("bridge", "back")
            copies = {("ticks.tock", "clock-0", ONE), ("ticks.tock", "clock-1", ONE)}
            assert await every.told(2) == copies
            assert await own.told(2) == copies
            await ended(bridge)
            await ticks.tick("clock-2")
            assert await every.told(1) == {("ticks.tick", "clock-2", ONE)}
