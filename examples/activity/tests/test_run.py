"""A small real run: processes, a kill on the way, the invariant, the table and the picture."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1]
ROOT = EXAMPLE.parents[1]


def test_a_thousand_clicks_with_a_kill_on_the_way(tmp_path: Path) -> None:
    prepare = runpy.run_path(str(ROOT / "scripts" / "example"))["prepare"]
    pinned = EXAMPLE / "requirements.txt"
    python = prepare(Path(sys.executable), pinned, ROOT / ".demo" / "activity.venv")
    copy = tmp_path / "activity"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns(".oyez", "out", "__pycache__"))
    settings = copy / "oyez.toml"
    settings.write_text(re.sub(r"127\.0\.0\.1:\d+", lambda _: _free(), settings.read_text()))
    # Half an hour is 15 seconds: long beside a restart, and short beside this test's patience.
    done = subprocess.run(
        [python, "run.py", "--events", "1200", "--data", "made", "--seed", "7"],
        cwd=copy,
        env={**os.environ, "ACTIVITY_SPEED": "120", "ACTIVITY_NIGHT": "5"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "The invariant holds.",
        "made up by seed 7",
        "killed on the way",
        "hit rate at 10",
    ):
        assert words in done.stdout
    assert (copy / "out" / "activity.svg").read_text().startswith("<?xml")
    again = subprocess.run([python, "check.py"], cwd=copy, capture_output=True, check=False)
    assert b"The invariant holds." in again.stdout


def _free() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
