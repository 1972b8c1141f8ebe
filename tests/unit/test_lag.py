"""How far services are, as values: also where the broker or the store does not answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from oyez import Event, Service
from oyez.config import load
from oyez.errors import BrokerUnavailable
from oyez.inspection.lag import as_value, measure, measure_all
from oyez.partitioning import partition_of
from oyez.ports import Broker, Changes, Record, Writes
from oyez.project import Project
from oyez.tables import PLACES, TIMERS
from oyez.testing import running
from oyez.timers import arm

TOML = """
[system]
name = "till"
broker = "{broker}"
[services.desk]
app = "no_desk:service"
[services.ledger]
app = "no_ledger:service"
[services.elsewhere]
app = "no_elsewhere:service"
store = "postgresql://127.0.0.1:1/none?deadline=0.2"
"""
FILE = "embedded:events.db"


class Sold(Event, type="till.sold", key="order"):
    order: str


async def project(tmp_path: Path, broker: str = FILE) -> Project:
    """Desk has handled the first of three records, ledger never ran."""
    (tmp_path / "oyez.toml").write_text(TOML.format(broker=broker))
    found = Project(load(tmp_path, {}))
    store = found.store("desk")
    await store.open()
    sql = "insert into oyez_cursor (stream, partition, position) values ('till.desk', 0, 1)"
    begun = store.begin()
    await begun.commit(Changes(writes=[(sql, [{}])]))
    await store.close()
    if broker == FILE:
        async with found.opened_broker(create=True) as opened:
            await opened.create("till.desk", 1)
            await opened.publish([
                Record(stream="till.desk", key=None, headers={}, data=b"{}") for _ in range(3)
            ])  # fmt: skip
    return found


async def test_the_lag_of_timers_is_how_many_are_due(tmp_path: Path) -> None:
    """Their places are no stream, so no broker is asked about them."""
    found = await project(tmp_path)
    now = found.ambient.now()
    sql = "insert into oyez_cursor (stream, partition) values (:stream, :partition)"
    places: list[Mapping[str, Any]] = [
        {"stream": TIMERS, "partition": part} for part in range(PLACES)
    ]
    store = found.store("desk")
    await store.open()
    due = arm("Order", "a", "one", now - 9, now) + arm("Order", "a", "two", now - 5, now)
    writes: Writes = [(sql, places), *due, *arm("Order", "a", "three", now + 3600, now)]
    await store.begin().commit(Changes(writes=writes))
    await store.close()
    (desk,) = (await measure_all(found, ["desk"])).services
    timers = [each for each in desk.partitions if each.stream == TIMERS]
    part = partition_of("a", PLACES)
    assert [each.lag for each in timers] == [2 * (n == part) for n in range(PLACES)]
    assert (timers[part].oldest, timers[part].oldest_known) == (pytest.approx(now - 9), True)
    assert desk.lag == 4


async def test_what_is_known_and_what_is_not(tmp_path: Path) -> None:
    lag = await measure_all(await project(tmp_path), ["desk", "ledger", "elsewhere"])
    (desk,) = lag.services
    (partition,) = desk.partitions
    assert (partition.position, partition.end, partition.lag) == (1, 3, 2)
    assert not desk.oldest_known
    assert lag.not_created == ("ledger",)
    assert [(gap.part, gap.name, gap.cause) for gap in lag.gaps] == [
        ("service", "desk", "failed"),
        ("service", "ledger", "failed"),
        ("service", "elsewhere", "failed"),
        ("store", "elsewhere", "unreachable"),
    ]
    value = as_value(lag)
    assert json.loads(json.dumps(value)) == value
    assert value["not_created"] == ["ledger"]


async def test_a_broker_that_is_out_of_reach_is_one_gap(tmp_path: Path) -> None:
    system = await project(tmp_path, "redis://127.0.0.1:1?deadline=0.2")
    lag = await measure_all(system, ["desk", "ledger"])
    (desk,) = lag.services
    assert (desk.lag, desk.partitions[0].position) == (None, 1)
    (gap,) = [gap for gap in lag.gaps if gap.part == "broker"]
    assert (gap.name, gap.cause) == ("redis", "unreachable")


async def test_a_broker_that_goes_away_meanwhile_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = await project(tmp_path)
    connect = Project.connect

    def leaving(project: Project, url: str, group: str = "") -> Broker:
        broker: Any = connect(project, url, group)

        async def lag(stream: str, positions: Mapping[int, int]) -> Mapping[int, int]:
            raise BrokerUnavailable("gone")

        broker.lag = lag
        return broker

    monkeypatch.setattr(Project, "connect", leaving)
    lag = await measure_all(system, ["desk"])
    assert [each.lag for each in lag.services] == [None]
    assert [gap.reason for gap in lag.gaps if gap.part == "broker"] == ["gone"]


async def test_each_stream_is_asked_for_its_lag_once(tmp_path: Path) -> None:
    """However many partitions it has; the oldest event of each is named."""
    asked: list[Mapping[int, int]] = []
    async with running(Service("desk"), partitions=64) as system:
        process = system.processes["desk"]
        headers = {"type": "till.sold", "id": "first"}
        for number in range(200):
            await system.publish_raw({**headers, "id": f"e{number}"}, b"{}", key=f"k{number}")

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(process.broker, name)

            async def lag(self, stream: str, positions: Mapping[int, int]) -> Mapping[int, int]:
                asked.append(positions)
                return await process.broker.lag(stream, positions)

        service = Service("desk")

        @service.on(Sold)
        async def sell(event: Sold) -> None:
            pass

        lag = await measure("test", "desk", service, Counting(), process.store, 1.0)  # type: ignore[arg-type]
    assert [len(positions) for positions in asked] == [64]
    assert (len(lag.partitions), lag.lag) == (64, 200)
    waiting = [each for each in lag.partitions if each.lag]
    assert {each.oldest_id for each in waiting} <= {f"e{number}" for number in range(200)}
    assert all(each.oldest_id for each in waiting)
    firsts = {each.partition: each.oldest_id for each in waiting}
    assert firsts[partition_of("k0", 64)] == "e0"


async def test_a_search_for_the_oldest_event_ends_in_time(tmp_path: Path) -> None:
    """What was not found by then is unknown, and the lag is known all the same."""
    found = await project(tmp_path)
    service = Service("desk")

    @service.on(Sold)
    async def sell(event: Sold) -> None:
        pass

    async with found.opened_broker() as broker, found.opened_store("desk") as store:
        record = Record(
            stream="till.desk", key=None, headers={"type": "till.sold", "id": "e"}, data=b"{}"
        )
        await broker.publish([record])
        whole = await measure("till", "desk", service, broker, store, 1.0)
        part = await measure("till", "desk", service, broker, store, 1.0, within=0.0)
    assert (whole.lag, whole.partitions[0].oldest_id, whole.oldest_known) == (3, "e", True)
    assert (part.lag, part.partitions[0].oldest, part.oldest_known) == (3, None, False)
