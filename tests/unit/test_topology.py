"""Who publishes what and who reacts, as values: no process, no printing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.dom import minidom

import pytest

from oyez.config import load
from oyez.inspection.drawing import mermaid, svg
from oyez.inspection.topology import Topology, as_value, survey
from oyez.project import Project

TOML = """
[system]
name = "till"
[services.desk]
app = "topology_desk:service"
[services.ledger]
app = "topology_ledger:service"
[services.broken]
app = "topology_broken:service"
"""
DESK = """
from oyez import Event, Service
class Sold(Event, type="till.sold"):
    n: int
service = Service("desk", publishes=(Sold,))
"""
LEDGER = """
from oyez import Event, Service
service = Service("ledger")
class Sold(Event, type="till.sold"):
    n: int
class Paid(Event, type="till.paid"):
    n: int
@service.on(Sold)
def record(event: Sold) -> None: ...
@service.on(Paid, name="<later>&")
def later(event: Paid) -> None: ...
"""


@pytest.fixture
def topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Topology]:
    (tmp_path / "oyez.toml").write_text(TOML)
    (tmp_path / "topology_desk.py").write_text(DESK)
    (tmp_path / "topology_ledger.py").write_text(LEDGER)
    (tmp_path / "topology_broken.py").write_text("raise RuntimeError('not today')")
    monkeypatch.setattr("sys.path", [*sys.path])
    yield survey(Project(load(tmp_path, {})))
    for name in ("desk", "ledger"):
        del sys.modules[f"topology_{name}"]


def test_each_type_has_its_publishers_and_handlers(topology: Topology) -> None:
    paid, sold = topology.flows
    assert (paid.type, paid.publishers, paid.handlers) == (
        "till.paid",
        (),
        (("ledger", "<later>&"),),
    )
    assert (sold.type, sold.publishers, sold.handlers) == (
        "till.sold",
        ("desk",),
        (("ledger", "record"),),
    )
    assert topology.unpublished == ["till.paid"]
    assert topology.unhandled == []


def test_a_service_that_can_not_be_imported_is_a_gap(topology: Topology) -> None:
    (gap,) = topology.gaps
    assert (gap.part, gap.name, gap.reason) == ("service", "broken", "RuntimeError: not today")
    assert str(gap) == "broken can't be imported and is left out: RuntimeError: not today"
    assert topology.services == ("desk", "ledger", "broken")
    assert topology.imported == ["desk", "ledger"]
    assert as_value(topology)["failed"] == {"broken": "RuntimeError: not today"}


def test_its_forms_can_be_read_by_machines(topology: Topology) -> None:
    value = as_value(topology)
    assert json.loads(json.dumps(value)) == value
    assert "&lt;later&gt;&amp;" in svg(topology)
    minidom.parseString(svg(topology))
    lines = mermaid(topology).splitlines()
    assert '  s0 -->|"till.sold"| s1' in lines
    assert '  outside -.->|"till.paid"| s1' in lines
    assert "broken" not in mermaid(topology)
