"""What `oyez flow` takes for an event that a service has still to read."""

from __future__ import annotations

import pytest

from oyez import Event, Service
from oyez.cli.flow import Node, Place, _pending, _Reader

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
        places={BROKER: Place(partition=0, position=1, time=0.0)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "handlers"),
    [("shop.desk", ["record"]), ("bank.desk", ["compare"]), ("bank.till", [])],
)
def test_another_system_s_event_waits_only_for_who_names_its_stream(
    stream: str, handlers: list[str]
) -> None:
    reader = _Reader(system="shop", name="ledger", service=service, broker=BROKER, bridges=[])
    assert [each.handler for each in _pending(reader, node(stream), {})] == handlers
    assert list(_pending(reader, node(stream, "test.flow.other"), {})) == []
    assert list(_pending(reader, node(stream), {(stream, 0): 1})) == []
