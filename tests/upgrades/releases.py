"""Processes of a release beside those of this one, and the books that all of them keep.

A release is a wheel in ``wheels/NAME``, unpacked and put before this code on the path of its
processes; everything else of the environment is this one's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import apsw

import oyez
from oyez.config import load
from oyez.ports import Store
from oyez.project import Project

HERE = Path(__file__).parent
THIS = "this"
PREVIOUS = max(path.name for path in (HERE / "wheels").iterdir() if path.is_dir())
"""The release before this one."""
SERVICES = ("desk", "till", "ledger")
DEADLINE = 90.0
_STARTED = '"event": "started"', '"event":"started"'


class System:
    """The project in a folder of its own; its processes are of any release."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder / "project"
        shutil.copytree(HERE / "project", self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        settings = self.folder / "oyez.toml"
        settings.write_text(settings.read_text().replace(":8101", f":{self._port}"))
        self._environment = {**os.environ, **(environment or {})}
        self._unpacked = folder / "releases"
        self._running: dict[str, list[tuple[str, subprocess.Popen[bytes]]]] = {}
        self._logs = 0

    @property
    def down(self) -> Path:
        """The file that keeps every fifth charge waiting."""
        return self.folder / "provider-down"

    def start(self, service: str, release: str) -> None:
        """Start a process of a service, and wait until it says so."""
        self._logs += 1
        log = self.folder / f"{self._logs}-{service}-{release}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "oyez", "run", service],
                cwd=self.folder,
                env={
                    **self._environment,
                    "PYTHONPATH": str(self._code(release)),
                    "RELEASE": release,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._running.setdefault(service, []).append((release, process))

        def started() -> bool:
            assert process.poll() is None, log.read_text()[-2000:]
            return any(mark in log.read_text() for mark in _STARTED)

        until(started, lambda: log.read_text()[-2000:])

    def _code(self, release: str) -> Path:
        if release == THIS:
            return Path(oyez.__file__).parents[1]
        place = self._unpacked / release
        if not place.exists():
            (wheel,) = (HERE / "wheels" / release).glob("*.whl")
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(place)
        return place

    def drain(self, service: str, release: str) -> None:
        """Send SIGTERM to a process of the release; it ends with 0."""
        (process,) = [each for name, each in self._running[service] if name == release]
        self._running[service].remove((release, process))
        process.terminate()
        assert process.wait(DEADLINE) == 0

    def kill(self) -> None:
        """``kill -9`` every process."""
        for processes in self._running.values():
            for _, process in processes:
                process.send_signal(signal.SIGKILL)
                process.wait(DEADLINE)
        self._running.clear()

    def place(self, first: int, count: int) -> None:
        """Place so many orders; each is a commit of Desk when this returns."""
        url = f"http://127.0.0.1:{self._port}/orders/{first}/{count}"
        request = urllib.request.Request(url, method="POST")
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            assert json.load(answer) == {"placed": count}

    def file(self, name: str) -> Path:
        """The file of a service's store, or of the broker (``events``)."""
        return self.folder / ".oyez" / f"{name}.db"

    def project(self) -> Project:
        """The project as this release reads it."""
        return Project(load(self.folder, self._environment))


class Books:
    """What the services have written, read through the stores of this release."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._stores = stores

    async def rows(self, service: str, sql: str) -> list[dict[str, Any]]:
        """The rows of a query."""
        return await self._stores[service].fetch(sql, {})

    async def count(self, service: str, source: str) -> int:
        """How many rows a table has; ``source`` may go on with ``where``."""
        (row,) = await self.rows(service, f"select count(*) as n from {source}")
        return int(row["n"])

    async def waiting(self) -> dict[str, int]:
        """What is not at its end yet, by where it waits."""
        found = {"open": await self.count("desk", "oyez_saga where status <> 'ended'")}
        for service in SERVICES:
            found[f"{service}: outbox"] = await self.count(service, "oyez_outbox")
            found[f"{service}: parked"] = await self.count(service, "oyez_inbox where state > 0")
        placed, closed = await self.count("desk", "placed"), await self.count("desk", "closed")
        found["not closed"] = placed - closed
        return {where: number for where, number in found.items() if number}

    async def problems(self, orders: int) -> list[str]:
        """What does not balance, once nothing waits."""
        wanted = orders, sum(100 + number for number in range(orders))
        found = {}
        for service, table in (
            ("desk", "placed"),
            ("till", "charge"),
            ("ledger", "entry"),
            ("desk", "closed"),
        ):
            sql = f"select count(*) as n, sum(cents) as cents from {table}"
            (row,) = await self.rows(service, sql)
            found[table] = int(row["n"]), int(row["cents"])
        wrong = [f"{table}: {row}, not {wanted}" for table, row in found.items() if row != wanted]
        dead = [f"{each}: {n} dead" for each in SERVICES if (n := await self._dead(each))]
        return wrong + dead

    async def _dead(self, service: str) -> int:
        return await self.count(service, "oyez_dead")


def until(condition: Callable[[], bool], explain: Callable[[], object] = lambda: "") -> None:
    """Return when the condition holds; fail after the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(0.05)  # between two looks at a condition with a deadline


def count(file: Path, source: str) -> int:
    """How many rows a table in a file of SQLite has, whatever release made it."""
    connection = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(10_000)
    try:
        ((number,),) = connection.execute(f"select count(*) from {source}")
        return int(number)
    finally:
        connection.close()
