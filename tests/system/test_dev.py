"""`oyez dev`: one log, restarts on code change, an orderly end, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oyez.testing.ticks import Ticks


class Dev:
    """A supervisor over the ticking system, and what it has logged."""

    def __init__(self, root: Path) -> None:
        self.ticks = Ticks(root)
        self._log = root / "dev.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "oyez", "dev", "--json"],
                cwd=root,
                env=self.ticks.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def lines(self) -> list[dict[str, Any]]:
        text = self._log.read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def pids(self) -> list[int]:
        """Every process it has ever started."""
        return [line["pid"] for line in self.lines() if line["event"] == "spawned"]

    def logged(self, words: str) -> int:
        return sum(words in str(line["event"]) for line in self.lines())


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    dev = Dev(tmp_path)
    yield dev
    dev.process.kill()
    dev.process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)  # between two looks, never instead of one


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def test_it_restarts_what_dies_and_what_changes_and_ends_in_order(dev: Dev) -> None:
    wait_for(lambda: dev.logged("is up") == 1)
    first = dev.pids()
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    wait_for(lambda: dev.logged("ended (by SIGKILL), restarting") == 1)
    wait_for(lambda: dev.logged("started") == 3)
    code = dev.ticks.root / "counter.py"
    code.write_text(code.read_text() + "\n# changed\n")
    wait_for(lambda: dev.logged("counter.py changed") >= 1)
    wait_for(lambda: dev.logged("started") >= 5)
    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(30) == 0
    assert dev.lines()[-1]["event"] == "stopped"
    assert not [pid for pid in dev.pids() if alive(pid)]


def test_it_leaves_no_process_behind_when_it_is_killed(dev: Dev) -> None:
    wait_for(lambda: dev.logged("is up") == 1)
    dev.process.kill()
    dev.process.wait()
    wait_for(lambda: not [pid for pid in dev.pids() if alive(pid)])
