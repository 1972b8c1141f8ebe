"""The dead letters of a system, as values."""

from __future__ import annotations

import json
from pathlib import Path

from oyez.config import load
from oyez.inspection.letters import as_value, list_letters, show_letter, whole_as_value
from oyez.ports import Changes, DeadLetter
from oyez.project import Project

TOML = """
[system]
name = "till"
[services.desk]
app = "desk:service"
[services.idle]
app = "idle:service"
[services.elsewhere]
app = "elsewhere:service"
store = "postgresql://127.0.0.1:1/none?deadline=0.2"
"""


async def project(tmp_path: Path, count: int) -> Project:
    """A system whose desk has so many dead letters, whose idle never ran, and one out of reach."""
    (tmp_path / "oyez.toml").write_text(TOML)
    found = Project(load(tmp_path, {}))
    store = found.store("desk")
    await store.open()
    begun = store.begin()
    await begun.commit(Changes(dead=[letter(n) for n in range(count)], time=1.0))
    await store.close()
    return found


def letter(number: int) -> DeadLetter:
    return DeadLetter(
        event_id=f"e{number}", source="/till/desk", type="till.sold", handler="record",
        stream="till.desk", partition=0, position=number + 1, key="k", reason="no",
        traceback="", attempts=1, history=[{"attempt": 1, "at": 5.0, "error": "no"}],
        headers={"id": f"e{number}"}, data=b"{}", time=5.0,
    )  # fmt: skip


async def test_what_can_not_be_read_is_a_gap_and_what_never_ran_has_none(tmp_path: Path) -> None:
    system = await project(tmp_path, 3)
    found = await list_letters(system, system.config.services, limit=2)
    assert [(each.service, each.event_id) for each in found.letters] == [
        ("desk", "e0"),
        ("desk", "e1"),
    ]
    assert found.more
    (gap,) = found.gaps
    assert (gap.part, gap.name, gap.cause) == ("store", "elsewhere", "unreachable")
    assert str(gap) == f"elsewhere: {gap.reason}"
    assert not (tmp_path / ".oyez" / "idle.db").exists()


async def test_a_letter_is_ready_for_json(tmp_path: Path) -> None:
    system = await project(tmp_path, 1)
    (listed,) = (await list_letters(system, ["desk"])).letters
    assert as_value(listed)["time"] == "1970-01-01T00:00:05.000000Z"
    whole = await show_letter(system, "desk", listed.id)
    assert whole is not None
    value = whole_as_value(whole)
    assert value["data"] == {}
    assert value["history"] == [{"attempt": 1, "at": "1970-01-01T00:00:05.000000Z", "error": "no"}]
    assert json.loads(json.dumps(value)) == value
    assert await show_letter(system, "desk", listed.id + 1) is None
