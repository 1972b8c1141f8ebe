"""Events as they come, and what can't be followed, as values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from oyez.config import load
from oyez.errors import BrokerUnavailable, OyezError
from oyez.inspection import follow
from oyez.inspection.follow import Arrival, as_value, following
from oyez.inspection.reach import Gap
from oyez.ports import Batch, Broker, Record
from oyez.project import Project

TOML = """
[system]
name = "till"
broker = "embedded:events.db"
[services.desk]
app = "no_desk:service"
broker = "embedded:other.db"
"""
STREAM = "till.desk"


def system(tmp_path: Path) -> Project:
    (tmp_path / "oyez.toml").write_text(TOML)
    return Project(load(tmp_path, {}))


async def publish(project: Project, *keys: str) -> None:
    async with project.opened_broker(create=True) as broker:
        await broker.create(STREAM, 1)
        await broker.publish([
            Record(stream=STREAM, key=key, headers={"id": key, "type": "t"}, data=b"[1]")
            for key in keys
        ])  # fmt: skip


async def test_what_was_there_comes_first_and_a_broker_that_is_not_is_a_gap(
    tmp_path: Path,
) -> None:
    project = system(tmp_path)
    await publish(project, "a", "b")
    async with asyncio.timeout(30), following(project, "desk", from_start=True) as streams:
        (gap,) = streams.gaps
        assert (gap.part, gap.name, gap.cause) == ("broker", "embedded:desk", "not-created")
        assert streams.answered
        async with aclosing(streams.arrivals()) as arrivals:
            await publish(project, "c")
            found = [await anext(arrivals) for _ in range(3)]
    assert [each.key for each in found if isinstance(each, Arrival)] == ["a", "b", "c"]
    assert isinstance(found[0], Arrival)
    value = as_value(found[0], broker=True)
    assert (value["broker"], value["data"], value["type"]) == ("embedded:events.db", [1], "t")
    assert "broker" not in as_value(found[0], broker=False)
    assert not (tmp_path / "other.db").exists()


async def test_where_no_broker_answers_nothing_is_followed(tmp_path: Path) -> None:
    async with following(system(tmp_path), "desk") as streams:
        assert not streams.answered
        assert [gap.name for gap in streams.gaps] == ["embedded", "embedded:desk"]
        assert [each async for each in streams.arrivals()] == []


async def test_an_unknown_stream_is_refused_with_those_there_are(tmp_path: Path) -> None:
    project = system(tmp_path)
    await publish(project, "a")
    with pytest.raises(OyezError, match=r"no stream 'nobody'; there are: till\.desk"):
        async with following(project, "nobody"):
            pass


async def test_a_broker_that_fails_for_a_moment_is_a_gap_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = system(tmp_path)
    await publish(project, "a")
    connect = Project.connect

    def failing_once(project: Project, url: str, group: str = "") -> Broker:
        broker: Any = connect(project, url, group)
        read = broker.read

        async def fail(stream: str, partition: int, after: int) -> AsyncIterator[Batch]:
            broker.read = read
            raise BrokerUnavailable("away")
            yield

        broker.read = fail
        return broker

    monkeypatch.setattr(Project, "connect", failing_once)
    monkeypatch.setattr(follow, "AGAIN", 0.0)
    async with (
        asyncio.timeout(30),
        following(project) as streams,
        aclosing(streams.arrivals()) as arrivals,
    ):
        gap = await anext(arrivals)
        await publish(project, "b")
        arrival = await anext(arrivals)
    assert isinstance(gap, Gap)
    assert str(gap) == "broker embedded: till.desk[0]: away; retrying"
    assert isinstance(arrival, Arrival)
    assert arrival.key == "b"
