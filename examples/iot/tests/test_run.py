"""A small real run: processes, a gateway, a kill; and a check that finds what is planted in it."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1]
SCRIPTS = EXAMPLE.parents[1] / "scripts"


def test_a_thousand_readings_are_where_they_belong(tmp_path: Path) -> None:
    prepare = runpy.run_path(str(SCRIPTS / "example"))["prepare"]
    pinned = EXAMPLE / "requirements.txt"
    python = prepare(Path(sys.executable), pinned, SCRIPTS.parent / ".demo" / "iot.venv")
    left = shutil.ignore_patterns(".oyez", "__pycache__", "tests", "out", "keys.toml")
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "iot", ignore=left))
    path = os.pathsep.join([str(SCRIPTS / "example.d"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [python, "run.py", "--events", "1000"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("The invariant holds", "accepted, each once", "events/s", "p99", "peak memory"):
        assert said in done.stdout
    assert "<svg" in (folder / "out" / "iot.svg").read_text()
