"""An event that the broker refused, through the commands: lag, dead, flow and redrive."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oyez import tables
from oyez.config import load
from oyez.ports import Announcement, Changes, DeadLetter
from oyez.project import Project

TOML = """
[system]
name = "till"
broker = "embedded:events.db"
[services.desk]
app = "desk:service"
"""
HEADERS = {
    "specversion": "1.0",
    "source": "/till/desk",
    "type": "till.sold",
    "subject": "4711",
    "partitionkey": "4711",
    "time": "2026-11-01T10:00:00Z",
}


@pytest.fixture
async def root(tmp_path: Path) -> Path:
    """A service whose first event was refused; the second one of its key waits after it."""
    (tmp_path / "oyez.toml").write_text(TOML)
    (tmp_path / "desk.py").write_text('from oyez import Service\nservice = Service("desk")\n')
    project = Project(load(tmp_path, {}))
    async with project.opened_broker(create=True) as broker:
        await broker.create("till.desk", 1)
    store = project.store("desk")
    await store.open()
    announced = [
        Announcement(
            stream="till.desk", key="4711", headers={**HEADERS, "id": f"sold-{n}"}, data=b"{}"
        )
        for n in (1, 2)
    ]
    await store.begin().commit(Changes(announced=announced))
    first, _ = await store.outbox(0, 0.0, 10)
    letter = DeadLetter(
        event_id="sold-1",
        source="/till/desk",
        type="till.sold",
        handler=tables.OUTBOX,
        stream="till.desk",
        partition=-1,
        position=first.seq,
        key="4711",
        reason="refused by the broker: a header is too long",
        traceback="",
        attempts=1,
        history=[],
        headers=first.headers,
        data=first.data,
        time=project.ambient.now(),
    )
    writes: list[Any] = [
        (tables.REFUSE, [{"seq": first.seq}]),
        (tables.HOLD, [{"stream": "till.desk", "key": "4711"}]),
    ]
    await store.begin().commit(Changes(writes=writes, dead=[letter]))
    await store.close()
    return tmp_path


def oyez(root: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "oyez", *arguments, "--json"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_is_seen_and_redriven(root: Path) -> None:
    (desk,) = oyez(root, "lag")["services"]
    assert desk["outbox"]["events"] == 2
    assert desk["outbox"]["refused"] == 1
    assert desk["dead"] == 1
    assert all(each["partition"] >= 0 for each in desk["partitions"])
    flow = json.dumps(oyez(root, "flow", "4711"))
    assert '"state": "refused"' in flow
    assert '"state": "held"' in flow
    letters = json.dumps(oyez(root, "dead", "list"))
    assert tables.OUTBOX in letters
    done = subprocess.run(
        [sys.executable, "-m", "oyez", "dead", "redrive", "desk", "1"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "redriven: desk 1\n"), done.stderr
    flow = json.dumps(oyez(root, "flow", "4711"))
    assert flow.count('"state": "outbox"') == 2


def test_it_is_discarded_and_the_next_one_goes_on(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "oyez", "dead", "discard", "desk", "1", "--why", "sold twice"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (desk,) = oyez(root, "lag")["services"]
    assert (desk["outbox"]["events"], desk["outbox"]["refused"], desk["dead"]) == (1, 0, 0)
