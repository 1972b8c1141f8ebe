"""Whether a process is inside a transaction of its store, seen from outside."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from campaign import Run

_FLOCK = re.compile(r"FLOCK +ADVISORY +WRITE (\d+) \w+:\w+:(\d+) ", re.ASCII)
_IN_TRANSACTION = """select client_port from pg_stat_activity
 where client_port > 0 and xact_start is not null and backend_xid is not null"""
_SOCKET = re.compile(r"socket:\[(\d+)\]")


async def frozen(pid: int) -> None:
    """Return when a process that was sent SIGSTOP stands still, each of its threads."""
    while any(_state(task) not in "TtZX" for task in Path(f"/proc/{pid}/task").iterdir()):
        await asyncio.sleep(0)


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


async def inside(run: Run, process: str, pid: int) -> bool:
    """Return whether a process has begun a transaction that writes, and not ended it.

    Of one that is not frozen it tells what was the case a moment ago.
    """
    file = run.project.store_file(process)
    if file is not None:
        return _holds_lock(pid, Path(f"{file}.lock"))
    async with run.database() as database:
        ports = await database.fetch(_IN_TRANSACTION)
    return bool(ports) and not {row["client_port"] for row in ports}.isdisjoint(_ports(pid))


def _holds_lock(pid: int, lock: Path) -> bool:
    """Whether it has the lock that writers of a SQLite file hold from BEGIN to COMMIT."""
    try:
        inode = str(lock.stat().st_ino)
    except FileNotFoundError:
        return False
    held = _FLOCK.findall(Path("/proc/locks").read_text())
    return (str(pid), inode) in held


def _ports(pid: int) -> list[int]:
    """The local ports of a process's TCP connections."""
    own = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = _SOCKET.fullmatch(os.readlink(entry))
        except FileNotFoundError:
            continue
        if found:
            own.add(found[1])
    ports = []
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in own:
            ports.append(int(fields[1].rpartition(":")[2], 16))
    return ports
