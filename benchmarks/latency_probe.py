"""The receiving processes of `benchmarks.embedded_latency`.

``service`` is run by ``oyez run probe``; ``python -m benchmarks.latency_probe WAY FOLDER`` is what
one writes by hand. All note in ``seen`` how long each event took from the publisher's call to the
handler, on the clock that all processes of a machine share.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import apsw

from oyez import Event, Service, Transaction

SEEN = "create table seen (number integer primary key, micros real not null)"
LOG = """create table log (position integer primary key, number integer not null,
 sent integer not null)"""
PAUSE = 0.01
"""Seconds between two looks of the polling reader."""


class Ticked(Event, type="bench.ticked", key="key"):
    """One event; ``sent`` is in nanoseconds on the monotonic clock."""

    key: str
    number: int
    sent: int


service = Service("probe", migrations="migrations")


@service.on(Ticked)
async def note(event: Ticked, tx: Transaction) -> None:
    """Write down how old the event is."""
    micros = (time.monotonic_ns() - event.sent) / 1000
    tx.execute("insert into seen values (:number, :micros)", number=event.number, micros=micros)


def connect(path: Path) -> apsw.Connection:
    """A connection as careful as Oyez's own."""
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(5000)
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=full")
    return connection


def main(way: str, folder: Path) -> None:
    """Read the log until killed: ``poll`` sleeps in between, ``datagram`` is woken."""
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bell.bind(str(folder / "bell"))
    log, own = connect(folder / "log.db"), connect(folder / "seen.db")
    own.execute(SEEN)
    (folder / "ready").touch()
    position = 0
    while True:
        rows = list(
            log.execute("select position, number, sent from log where position > ?", (position,))
        )
        if rows:
            position = rows[-1][0]
            seen = [(number, (time.monotonic_ns() - sent) / 1000) for _, number, sent in rows]
            with own:
                own.executemany("insert into seen values (?, ?)", seen)
        elif way == "poll":
            time.sleep(PAUSE)
        else:
            bell.recv(16)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
