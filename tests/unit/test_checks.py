"""What the doctor finds, as values."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.inspection.checks import CheckResult, as_value, examine, sound, unreadable
from oyez.project import Project

TOML = """
[system]
name = "till"
broker = "redis://:secret@127.0.0.1:1?deadline=0.2"
retention_days = 30
[services.desk]
app = "checked_desk:service"
"""
DESK = """
from oyez import Event, Service
service = Service("desk")
class Sold(Event, type="till.sold"):
    n: int
@service.on(Sold)
def record(event: Sold, needed: dict) -> None: ...
"""


async def found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str = ""
) -> dict[str, CheckResult]:
    (tmp_path / "oyez.toml").write_text(TOML + more)
    (tmp_path / "checked_desk.py").write_text(DESK)
    monkeypatch.setattr("sys.path", [*sys.path])
    findings = await examine(Project(load(tmp_path, {})))
    sys.modules.pop("checked_desk", None)
    value = as_value(findings)
    assert json.loads(json.dumps(value)) == value
    assert value["ok"] == sound(findings)
    return {each.check: each for each in findings}


async def test_a_system_that_never_ran_is_examined_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = await found(tmp_path, monkeypatch)
    assert checks["configuration"].level == "ok"
    assert checks["broker"].level == "problem"
    assert "secret" not in checks["broker"].text
    assert checks["service desk"].level == "problem"
    assert "record takes dict" in checks["service desk"].text
    assert checks["retention"].level == "warning"
    assert checks["store desk"].text == "not created yet: the service has not run"
    assert not (tmp_path / ".oyez").exists()


GATEWAY = """
http = "127.0.0.1:1"
[gateway]
store = "redis://:secret@127.0.0.1:1?deadline=0.2"
[[gateway.routes]]
path = "/sales"
service = "desk"
methods = ["POST"]
"""


async def test_the_store_of_the_gateway_is_examined_if_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "gateway store" not in await found(tmp_path, monkeypatch, GATEWAY)
    used = f'{GATEWAY}idempotency = "optional"\n'
    checks = await found(tmp_path, monkeypatch, used)
    assert checks["gateway store"].level == "problem"
    assert "127.0.0.1:1 is out of reach" in checks["gateway store"].text
    assert "secret" not in checks["gateway store"].text
    url = "redis://:secret@127.0.0.1:1?deadline=0.2"
    checks = await found(tmp_path, monkeypatch, used.replace(url, "sqlite:kept/gateway.db"))
    assert checks["gateway store"].level == "ok"
    assert checks[f"folder {tmp_path.resolve() / 'kept'}"].level == "ok"


ELSEWHERE = """
[services.ledger]
app = "checked_elsewhere:service"
store = "sqlite:ledger/ledger.db"
admin = "127.0.0.1:1"
[gateway]
listen = "127.0.0.1:1"
"""


async def test_of_one_service_only_what_it_depends_on_is_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = await found(tmp_path, monkeypatch, ELSEWHERE)
    assert every["service ledger"].level == "problem"
    assert any(check.startswith("topology ") for check in every)
    project = Project(load(tmp_path, {}))
    checks = {each.check: each for each in await examine(project, "desk")}
    sys.modules.pop("checked_desk", None)
    data = tmp_path.resolve() / ".oyez"
    assert set(checks) == {
        "configuration",
        "service desk",
        "sqlite",
        f"folder {data}",
        f"secret {data / 'token'}",
        "clock",
        "retention",
        "broker",
        "store desk",
    }
    assert checks["service desk"].level == "problem"
    assert checks["broker"].level == "problem"
    with pytest.raises(ConfigurationError, match="there is no service 'nobody'"):
        await examine(project, "nobody")


async def test_the_broker_of_one_service_is_examined_in_the_systems_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = 'broker = "embedded:own/events.db"\n'
    every = await found(tmp_path, monkeypatch, own)
    assert "127.0.0.1:1 is out of reach" in every["broker"].text
    checks = {each.check: each for each in await examine(Project(load(tmp_path, {})), "desk")}
    sys.modules.pop("checked_desk", None)
    assert checks["broker"].text == "not created yet: it is made by the first service that runs"


def test_a_project_that_can_not_be_opened_is_a_finding(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(tmp_path / "oyez.toml", {})
    finding = unreadable(raised.value)
    assert (finding.check, finding.level, finding.text) == (
        "configuration",
        "problem",
        str(raised.value),
    )
    assert not sound([finding])
