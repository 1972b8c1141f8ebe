"""Journeys as values: what waits for whom, what was left out, what could not be looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oyez import Event, Service
from oyez.config import load
from oyez.inspection import journey
from oyez.inspection.journey import Journeys, as_value, trace
from oyez.inspection.reactions import Node, Reader, Stand, _pending
from oyez.ports import Record
from oyez.project import Project

BROKER = "kafka://shared"
service = Service("ledger")


class Paid(Event, type="test.flow.paid"):
    n: int = 0


@service.on(Paid)
def record(event: Paid) -> None: ...


@service.on(Paid, stream="bank.desk")
def compare(event: Paid) -> None: ...


def node(stream: str, event_type: str = "test.flow.paid") -> Node:
    return Node(
        id="1", source="/any/desk", type=event_type, key=None, time=0.0, correlation="1",
        causation=None, stream=stream,
        places={BROKER: Stand(partition=0, position=1, time=0.0)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "handlers"),
    [("shop.desk", ["record"]), ("bank.desk", ["compare"]), ("bank.till", [])],
)
def test_another_system_s_event_waits_only_for_who_names_its_stream(
    stream: str, handlers: list[str]
) -> None:
    reader = Reader(
        system="shop", name="ledger", service=service, broker=BROKER, awaited=lambda _: None
    )
    assert [each.handler for each in _pending(reader, node(stream), {})] == handlers
    assert list(_pending(reader, node(stream, "test.flow.other"), {})) == []
    assert list(_pending(reader, node(stream), {(stream, 0): 1})) == []


TOML = """
[system]
name = "till"
broker = "embedded:events.db"
[services.desk]
app = "no_desk:service"
[services.elsewhere]
app = "no_elsewhere:service"
store = "postgresql://127.0.0.1:1/none?deadline=0.2"
"""


async def told(tmp_path: Path, *events: dict[str, str], identity: str = "k") -> Journeys:
    """What is known of ``identity`` when these events are published on the till's only broker."""
    (tmp_path / "oyez.toml").write_text(TOML)
    project = Project(load(tmp_path, {}))
    if events:
        async with project.opened_broker(create=True) as broker:
            await broker.create("till.desk", 1)
            headers = [{"source": "/till/desk", **each} for each in events]
            await broker.publish(
                [Record(stream="till.desk", key="k", headers=each, data=b"{}") for each in headers]
            )
    return await trace(project, identity)


async def test_what_an_event_caused_hangs_under_it(tmp_path: Path) -> None:
    found = await told(
        tmp_path,
        {"id": "a", "type": "sold"},
        {"id": "b", "type": "paid", "correlationid": "a", "causationid": "a"},
        {"id": "c", "type": "other"},
    )
    first, second = found.journeys
    (root,) = first.events
    assert (first.correlation, root.id, [each.id for each in root.events]) == ("a", "a", ["b"])
    assert second.correlation == "c"
    assert [(place.broker, place.position) for place in root.places] == [("embedded", 1)]
    value = as_value(found)
    assert json.loads(json.dumps(value)) == value
    assert value["journeys"][0]["events"][0]["places"][0]["broker"] == "embedded:events.db"


async def test_a_journey_says_who_began_it(tmp_path: Path) -> None:
    ann = {"authid": "login:ann", "authtype": "app_user"}
    found = await told(
        tmp_path,
        {"id": "a", "type": "sold", "time": "2026-11-29T10:00:01Z", **ann},
        {"id": "b", "type": "sold", "time": "2026-11-29T10:00:02Z", "correlationid": "a"},
        {"id": "c", "type": "sold", "time": "2026-11-29T10:00:03Z"},
    )
    assert [each.by for each in found.journeys] == ["login:ann", None]
    first, second = (each["events"][0] for each in as_value(found)["journeys"])
    assert (first["authid"], first["authtype"]) == ("login:ann", "app_user")
    assert (second["authid"], second["authtype"]) == (None, None)


async def test_what_can_not_be_looked_at_is_a_gap(tmp_path: Path) -> None:
    found = await told(tmp_path, {"id": "a", "type": "sold"})
    assert found.answered
    assert [(gap.part, gap.name, gap.cause) for gap in found.gaps] == [
        ("service", "desk", "failed"),
        ("service", "elsewhere", "failed"),
        ("store", "elsewhere", "unreachable"),
    ]


async def test_where_no_broker_answers_that_is_a_value_too(tmp_path: Path) -> None:
    found = await told(tmp_path)
    assert (found.answered, found.journeys) == (False, ())
    assert [gap.cause for gap in found.gaps if gap.part == "broker"] == ["not-created"]
    assert not (tmp_path / "events.db").exists()


async def test_a_journey_of_which_no_event_has_room_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journey, "EVENTS", 1)
    found = await told(tmp_path, {"id": "a", "type": "sold"}, {"id": "b", "type": "sold"})
    assert [each.correlation for each in found.journeys] == ["a"]
    assert found.cut
