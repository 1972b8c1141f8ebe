"""A bridge carries a stream to another broker: nothing lost, nothing doubled, in order."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.testing.ticks import Ticks, ticking, until
from servers import server

NAMES = tuple(f"clock-{n}" for n in range(24))
BRIDGE = """
[bridges.over]
source = "{source}"
target = "{target}"
streams = ["{name}.clock"]
lease = 2.0
"""


def add_bridge(ticks: Ticks, source: str, target: str) -> None:
    with (ticks.root / "oyez.toml").open("a") as toml:
        toml.write(BRIDGE.format(source=source, target=target, name=ticks.name))


async def carried(tmp_path: Path, source: str, target: str) -> None:
    """A service on ``target`` handles what a clock on ``source`` publishes; bridges are killed."""
    async with ticking(tmp_path / "ticks", broker=target, outside=source) as ticks:
        add_bridge(ticks, source, target)
        ticks.start_replica()
        first, second = ticks.start_replica("bridge", "over"), ticks.start_replica("bridge", "over")
        for _ in range(5):
            await ticks.tick(*NAMES)
        await until(lambda: ticks.seen(), why=ticks._last_words)
        first.kill()
        for _ in range(5):
            await ticks.tick(*NAMES)
        third = ticks.start_replica("bridge", "over")
        await ticks.all_seen(*NAMES)
        second.kill()
        await ticks.tick(*NAMES)
        await ticks.all_seen(*NAMES)
        third.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(third.wait, 15) == 0
        await ticks.tick(*NAMES)
        ticks.start_replica("bridge", "over")
        await ticks.all_seen(*NAMES)


async def test_between_two_files(tmp_path: Path) -> None:
    await carried(tmp_path, "embedded:.oyez/one.db", "embedded:.oyez/two.db")


@pytest.mark.parametrize(
    ("source", "target"), [("embedded", "redis"), ("redis", "embedded"), ("kafka", "nats")]
)
async def test_between_two_brokers(tmp_path: Path, source: str, target: str) -> None:
    urls = [
        "embedded:.oyez/events.db" if name == "embedded" else server(name).url
        for name in (source, target)
    ]
    await carried(tmp_path, urls[0], urls[1])


async def test_what_can_not_be_read_goes_across_as_it_is(tmp_path: Path) -> None:
    source, target = "embedded:.oyez/one.db", "embedded:.oyez/two.db"
    async with ticking(tmp_path / "ticks", broker=target, outside=source) as ticks:
        add_bridge(ticks, source, target)
        ticks.start_replica()
        ticks.start_replica("bridge", "over")
        (good,) = ticks.ticking("clock-0")
        junk = good.__class__(
            stream=good.stream, key="k", headers={"type": "ticks.tick"}, data=b"\xff"
        )
        await ticks.broker.publish([junk, good])
        await ticks.all_seen("clock-0")

        async def dead() -> list[Any]:
            return await ticks.query("select data from oyez_dead")

        await until(dead)
        assert await dead() == [{"data": b"\xff"}]


def test_an_unknown_bridge_is_told_with_those_there_are(tmp_path: Path) -> None:
    system = Ticks(tmp_path)
    add_bridge(system, "embedded:.oyez/events.db", "embedded:.oyez/other.db")
    ran = system.run("bridge", "voer")
    assert ran.returncode == 2
    assert "there is no bridge 'voer'; there are: over" in ran.stderr


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (("a", "a", "x"), None, "bridges.over.target: expected another broker"),
        (("a", "./a", "x"), None, "bridges.over.target: expected another broker"),
        (("a", "b", "x"), ("b", "a", "x"), "in a circle"),
        (("a", "b", "x.*"), ("b", "a", "x.y"), "in a circle"),
        (("a", "b", "x"), ("./b", "c/../a", "x"), "in a circle"),
        (("a", "b", "x.y"), ("b", "a", "x.z"), None),
        (("a", "b", ""), None, "bridges.over.streams: expected a list of streams"),
    ],
)
def test_a_bridge_that_can_not_be_is_refused(
    tmp_path: Path, one: tuple[str, str, str], other: tuple[str, str, str] | None, told: str | None
) -> None:
    text = '[system]\nname = "t"\n'
    for name, bridge in (("over", one), ("back", other)):
        if bridge is not None:
            source, target, stream = bridge
            text += f'[bridges.{name}]\nsource = "embedded:{source}"\n'
            text += f'target = "embedded:{target}"\nstreams = ["{stream}"]\n'
    (tmp_path / "oyez.toml").write_text(text)
    if told is None:
        assert len(load(tmp_path).bridges) == 2
        return
    with pytest.raises(ConfigurationError, match=told):
        load(tmp_path)
