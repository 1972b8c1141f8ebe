"""The shop's guests, services in other languages that join by the broker: built, run, and asked.

They are in ``SHOP_GUESTS``, by default beside the shop: fraud-check in Go, loyalty in TypeScript.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(os.environ.get("SHOP_GUESTS") or Path(__file__).resolve().parents[1] / "shop-guests")
NEEDS = ("go", "node", "npm")
"""Programs that building and running them takes."""
BROKERS = ("kafka", "nats")
"""The kinds of broker that they have a client of."""
COMMANDS = {
    "fraud-check": [str(FOLDER / "fraud-check" / "fraud-check")],
    "loyalty": ["node", str(FOLDER / "loyalty" / "dist" / "loyalty.js")],
}
_BUILDS = {
    "fraud-check": [["go", "build", "-p", "2", "-o", "fraud-check", "."]],
    "loyalty": [
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        ["npm", "run", "--silent", "build"],
    ],
}


class GuestError(Exception):
    """The guests can't be built, or can't join; says why, and the remedy."""


class Ledger(msgspec.Struct, frozen=True):
    """What the guests know, by order, and what they have not finished."""

    flagged: dict[str, bool]
    """Whether an order was flagged; an order that is missing was not looked at."""
    points: dict[str, int]
    unfinished: dict[str, dict[str, int]]


def check_broker(broker: str) -> None:
    """Raise GuestError unless guests can join at the broker of this URL."""
    kind = broker.partition(":")[0]
    if kind == "embedded":
        raise GuestError(
            "the guests join by the broker, and an embedded one is files that belong to Oyez's own "
            "processes: give BROKER=nats or BROKER=kafka. In other languages an embedded broker is "
            "reached through the HTTP bridge alone"
        )
    if kind not in BROKERS:
        raise GuestError(f"the guests have no client of {kind}: give BROKER=nats or BROKER=kafka")


def missing() -> str:
    """Programs that this machine lacks for them, in words; empty for none."""
    return ", ".join(program for program in NEEDS if shutil.which(program) is None)


def build() -> None:
    """Build what is not built from the sources as they are. Raises GuestError."""
    if missing():
        raise GuestError(f"the guests need {missing()}, which this machine does not have")
    for name, commands in _BUILDS.items():
        folder = FOLDER / name
        with (folder / ".build.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # tests may run side by side
            if _is_built(folder, Path(COMMANDS[name][-1])):
                continue
            for command in commands:
                done = subprocess.run(  # noqa: S603 - our own command
                    command, cwd=folder, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    said = (done.stdout + done.stderr).strip()[-1_000:]
                    raise GuestError(f"{name}: {' '.join(command)} failed: {said}")


class Guests:
    """Their processes at one shop; their stores and logs are in ``data``."""

    def __init__(self, broker: str, system: str, data: Path) -> None:
        self._settings = {"BROKER": broker, "SYSTEM": system, "DATA": str(data)}
        self._data = data
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start one."""
        self._data.mkdir(parents=True, exist_ok=True)
        with (self._data / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own command
                COMMANDS[name], env={**os.environ, **self._settings}, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """``kill -9`` one, and start it again."""
        self._running[name].kill()
        self._running[name].wait()
        self.start(name)

    def stop(self) -> dict[str, int]:
        """Stop all in order; the exit code of each."""
        for process in self._running.values():
            process.terminate()
        return {name: process.wait(30) for name, process in self._running.items()}


@contextmanager
def running_guests(broker: str, system: str, data: Path) -> Iterator[Guests]:
    """All of them, built first if need be. Raises GuestError."""
    check_broker(broker)
    build()
    guests = Guests(broker, system, data)
    try:
        for name in COMMANDS:
            guests.start(name)
        yield guests
    finally:
        guests.stop()


def read_ledger(data: Path) -> Ledger:
    """What the guests have written down so far."""
    flagged = _rows(data / "fraud-check.db", "select order_id, flagged from verdict")
    points = _rows(data / "loyalty.db", "select order_id, points from points")
    return Ledger(
        {order_id: bool(each) for order_id, each in flagged},
        dict(points),
        {name: _unfinished(data / f"{name}.db") for name in COMMANDS},
    )


def _unfinished(file: Path) -> dict[str, int]:
    sql = "select (select count(*) from {}), (select count(*) from {}), (select count(*) from {})"
    tables = {"announced": "outbox", "parked": "parked", "dead": "dead"}
    found = _rows(file, sql.format(*tables.values()))
    return dict(zip(tables, found[0], strict=True)) if found else {}


def _rows(file: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of a guest's store; none before there is one."""
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as store:
            return store.execute(sql).fetchall()
    except sqlite3.OperationalError:
        return []


def _is_built(folder: Path, product: Path) -> bool:
    sources = [
        path
        for path in (*folder.glob("*.*"), *folder.glob("src/*"))
        if path.suffix in (".go", ".mod", ".sum", ".ts", ".json")
    ]
    newest = max(path.stat().st_mtime for path in sources)
    return product.exists() and product.stat().st_mtime >= newest
