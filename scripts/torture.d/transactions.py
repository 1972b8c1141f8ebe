"""Whether a process is inside a transaction of its store, seen from outside while it is frozen."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg
    from campaign import Run

_FLOCK = re.compile(r"FLOCK +ADVISORY +WRITE (\d+) \w+:\w+:(\d+) ", re.ASCII)
_SOCKET = re.compile(r"socket:\[(\d+)\]")


async def inside(run: Run, process: str, pid: int) -> bool:
    """Return whether the frozen process has begun a transaction that writes, and not ended it."""
    file = run.project.store_file(process)
    if file is not None:
        return _holds_lock(pid, Path(f"{file}.lock"))
    return await _is_in_transaction(await run.database(), _ports(pid))


def _holds_lock(pid: int, lock: Path) -> bool:
    """Whether it has the lock that writers of a SQLite file hold from BEGIN to COMMIT."""
    try:
        inode = str(lock.stat().st_ino)
    except FileNotFoundError:
        return False
    held = _FLOCK.findall(Path("/proc/locks").read_text())
    return (str(pid), inode) in held


async def _is_in_transaction(database: asyncpg.Connection, ports: list[int]) -> bool:
    return bool(
        await database.fetchval(
            """select count(*) from pg_stat_activity
             where client_port = any($1) and xact_start is not null and backend_xid is not null""",
            ports,
        )
    )


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
