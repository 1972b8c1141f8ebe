"""Services in repositories of their own: a change that breaks another one fails in its pipeline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ORDERS = """
from oyez import Event, Service
class Placed(Event, type="shop.placed", key="order"):
    order: str
    email: str
    cents: int
service = Service("orders", publishes=(Placed,))
"""
NOTIFICATIONS = """
from oyez import Event, Service
class Placed(Event, type="shop.placed", key="order"):
    order: str
    email: str
service = Service("notifications")
@service.on(Placed)
def send(event: Placed) -> None: ...
"""
PIPELINE = """#!/bin/sh -e
"$PYTHON" -m oyez contracts export --check
"$PYTHON" -m oyez contracts check --against git:HEAD
"$PYTHON" -m oyez contracts can-deploy orders "$@"
"""
DEADLINE = 60.0


class Repository:
    """A git repository with one service, which runs on the broker that all share."""

    def __init__(self, folder: Path, name: str, code: str) -> None:
        self.folder = folder / name
        self.name = name
        self.folder.mkdir()
        (self.folder / "oyez.toml").write_text(
            '[system]\nname = "shop"\nbroker = "embedded:../events.db"\n'
            'external = ["shop.placed"]\n'
            f'[services.{name}]\napp = "{name}_service:service"\nadmin = "127.0.0.1:0"\n'
        )
        (self.folder / ".gitignore").write_text(".oyez/\n__pycache__/\n")
        pipeline = self.folder / "pipeline"
        pipeline.write_text(PIPELINE)
        pipeline.chmod(0o755)
        self._git("init", "-q")
        self.commit(code)

    def commit(self, code: str) -> None:
        """Change the code, export its contract, and commit both."""
        self.change(code)
        self._git("add", "-A")
        self._git("commit", "-qm", "change")

    def change(self, code: str) -> None:
        """Change the code and export its contract, and don't commit yet."""
        (self.folder / f"{self.name}_service.py").write_text(code)
        assert self.oyez("contracts", "export").returncode == 0

    def oyez(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run([sys.executable, "-m", "oyez", *arguments])

    def pipeline(self, *arguments: str) -> tuple[int, str]:
        """Run the pipeline of the repository; its exit code, and what it prints."""
        done = self._run(["./pipeline", *arguments])
        return done.returncode, done.stdout + done.stderr

    def start(self, release: str) -> subprocess.Popen[bytes]:
        """Run the service until it is stopped."""
        log = (self.folder / f"{release}.log").open("wb")
        return subprocess.Popen(
            [sys.executable, "-m", "oyez", "run", self.name],
            cwd=self.folder,
            env={**self._environment(), "OYEZ_RELEASE": release},
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def deployed(self) -> list[tuple[str, str | None]]:
        """What the record on the broker says."""
        done = self.oyez("contracts", "pull")
        if done.returncode:
            return []
        told = json.loads(done.stdout)["deployed"]
        return [(each["contract"]["service"], each["release"]) for each in told]

    def until_deployed(self, *expected: tuple[str, str | None]) -> None:
        end = time.monotonic() + DEADLINE
        while (found := self.deployed()) != list(expected):
            assert time.monotonic() < end, found
            time.sleep(0.1)  # between two looks at a condition with a deadline

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def _environment(self) -> dict[str, str]:
        known = {n: v for n, v in os.environ.items() if not n.startswith("OYEZ_")}
        # A module that is changed twice in a second has the same time.
        return {**known, "PYTHON": sys.executable, "PYTHONDONTWRITEBYTECODE": "1"}

    def _git(self, *arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", "-C", str(self.folder), *who, *arguments], check=True)


@pytest.fixture
def running(
    tmp_path: Path,
) -> Iterator[tuple[Repository, Repository, list[subprocess.Popen[bytes]]]]:
    """Orders and Notifications, each in a repository of its own, and both running."""
    orders = Repository(tmp_path, "orders", ORDERS)
    notifications = Repository(tmp_path, "notifications", NOTIFICATIONS)
    processes = [orders.start("o1"), notifications.start("n1")]
    try:
        yield orders, notifications, processes
    finally:
        for each in processes:
            each.kill()
            each.wait(DEADLINE)


@pytest.mark.timeout(280)
def test_a_change_that_breaks_another_repository_fails_its_pipeline(
    running: tuple[Repository, Repository, list[subprocess.Popen[bytes]]],
) -> None:
    orders, notifications, processes = running
    orders.until_deployed(("notifications", "n1"), ("orders", "o1"))
    code, text = orders.pipeline()
    assert code == 0, text
    assert "yes: orders, beside notifications n1, orders o1" in text

    orders.change(ORDERS.replace("    email: str", "    email: str | None"))
    code, text = orders.pipeline()
    assert code == 1
    assert "FIELD_OPTIONAL shop.placed: notifications.send can't read it from orders: email" in text
    assert 'this event would become a dead letter: {"cents":1,"email":null,"order":"x"}' in text
    assert "no: orders, beside notifications n1, orders o1" in text

    orders.change(ORDERS.replace('key="order"', 'key="email"'))
    code, text = orders.pipeline()
    assert code == 1
    assert "KEY_CHANGED" in text

    for compatible in ("    cents: int\n    note: str = ''", ""):  # added, and removed
        orders.change(ORDERS.replace("    cents: int", compatible))
        code, text = orders.pipeline()
        assert code == 0, text

    # Where the pipeline can't reach the broker, a snapshot is asked.
    snapshot = orders.folder.parent / "snapshot.json"
    assert orders.oyez("contracts", "pull", "--output", str(snapshot)).returncode == 0
    orders.change(ORDERS.replace("    email: str\n", ""))
    (orders.folder / "oyez.toml").write_text(
        (orders.folder / "oyez.toml").read_text().replace("../events.db", "../none.db")
    )
    code, text = orders.pipeline()
    assert (code, "does not exist yet" in text) == (1, True)
    code, text = orders.pipeline("--from", str(snapshot))
    assert code == 1
    assert "FIELD_MISSING shop.placed: notifications.send" in text
    assert 'this event would become a dead letter: {"cents":1,"order":"x"}' in text

    # What ran last counts where nothing runs; then the consumer is deployed first.
    processes[1].send_signal(signal.SIGTERM)
    assert processes[1].wait(DEADLINE) == 0
    (orders.folder / "oyez.toml").write_text(
        (orders.folder / "oyez.toml").read_text().replace("../none.db", "../events.db")
    )
    assert orders.pipeline()[0] == 1
    notifications.commit(NOTIFICATIONS.replace("email: str", 'email: str = ""'))
    processes.append(notifications.start("n2"))
    orders.until_deployed(("notifications", "n2"), ("orders", "o1"))
    code, text = orders.pipeline()
    assert code == 0, text

    done = orders.oyez("contracts", "publish", "orders", "--json")
    assert (done.returncode, json.loads(done.stdout)["service"]) == (0, "orders")
    orders.until_deployed(("notifications", "n2"), ("orders", None))

    # Nothing else sees the record.
    for command in (["lag", "--json"], ["topology", "--json"], ["doctor", "--json"]):
        done = notifications.oyez(*command)
        assert "_contracts" not in done.stdout + done.stderr
