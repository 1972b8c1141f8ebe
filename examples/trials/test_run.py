"""A small run of one example in real processes, one of which is killed; ``EXAMPLE`` says which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]
NAME = os.environ["EXAMPLE"]
EVENTS = {"activity": "1200", "logistics": "300"}
"""How many are fed, where a thousand are too many, or too few to compare guesses."""
SETTINGS = {"ACTIVITY_SPEED": "120", "ACTIVITY_NIGHT": "5"}
SAID = (
    "The invariant holds",
    "killed on the way",
    "from history",
    "events/s",
    "p99",
    "peak memory",
)


def test_a_small_run_holds(tmp_path: Path) -> None:
    left = shutil.ignore_patterns(".oyez", "__pycache__", "tests", "trials", "out", "keys.toml")
    folder = Path(shutil.copytree(EXAMPLES / NAME, tmp_path / NAME, ignore=left))
    path = os.pathsep.join(
        [str(EXAMPLES.parent / "scripts" / "example.d"), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "run.py", "--events", EVENTS.get(NAME, "1000")],
        cwd=folder,
        env={**os.environ, **SETTINGS, "PYTHONPATH": path, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [each for each in SAID if each not in done.stdout] == []
    assert "(by SIGKILL), restarting" in (folder / ".oyez" / "dev.log").read_text()
    assert "<svg" in (folder / "out" / f"{NAME}.svg").read_text()
