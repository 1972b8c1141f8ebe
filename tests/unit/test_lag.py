"""How far services are, as values: also where the broker or the store does not answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from oyez.config import load
from oyez.errors import BrokerUnavailable
from oyez.inspection.lag import as_value, measure_all
from oyez.ports import Broker, Changes, Record
from oyez.project import Project

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
