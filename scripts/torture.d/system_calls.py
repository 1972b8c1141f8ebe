"""Watching and harming a process at its system calls, by strace."""

from __future__ import annotations

import asyncio
import re
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

CHANGES = (
    *("pwrite64", "write", "writev", "pwritev", "fsync", "fdatasync", "ftruncate", "flock"),
    *("sendto", "sendmsg", "unlink", "rename"),
)
"""System calls that change something that outlives the process, or tell another of it."""
ATTACHES = 10.0
"""Seconds within which strace has to hold the process."""

_CALL = re.compile(r"^(\d+) +(\w+)\((?:\d+<([^>]*))?", re.MULTILINE)
_ITS_OWN = "anon_inode:[eventfd"
"""What a thread writes to, to wake another of its own process: nobody else hears of it."""


class Point(NamedTuple):
    """The ``nth`` call of a system call by a thread (by its place in the process) of a process."""

    process: str
    thread: int
    syscall: str
    nth: int


@asynccontextmanager
async def traced(
    task: int, calls: str, *, harm: str = "", follow: bool = True
) -> AsyncIterator[list[str]]:
    """Have strace hold a process, or with ``follow=False`` one thread; yields its log.

    It stops at these ``calls`` (joined by commas) alone, and does ``harm`` there: what follows
    their names in strace's ``inject``. The block begins when strace holds the process, and strace
    lets go of it at the end; then the log is there, as one text.
    """
    with tempfile.NamedTemporaryFile("r") as log:
        text: list[str] = []
        options = [*(["-f"] if follow else []), "-y", "-e", f"trace={calls}"]
        if harm:
            options += ["-e", f"inject={calls}:{harm}"]
        strace = await asyncio.create_subprocess_exec(
            *("strace", *options, "-o", log.name, "-p", str(task)),
            stderr=asyncio.subprocess.PIPE,
        )
        assert strace.stderr is not None
        try:
            async with asyncio.timeout(ATTACHES):
                said = b""
                while b"attached" not in said:
                    line = await strace.stderr.readline()
                    if not line:
                        raise RuntimeError(f"strace: {said.decode()}")
                    said += line
            yield text
        finally:
            if strace.returncode is None:
                try:
                    strace.send_signal(signal.SIGINT)
                except ProcessLookupError:
                    pass
            await strace.wait()
            text.append(log.read())


def threads(pid: int) -> list[int]:
    """Return the threads of a process in the order in which they were started."""
    return sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())


def points(process: str, order: list[int], log: str) -> list[Point]:
    """Return the calls of a log that `traced` has read, of the threads in ``order``."""
    seen: Counter[tuple[int, str]] = Counter()
    found = []
    for task, syscall, file in _CALL.findall(log):
        if int(task) not in order:
            continue
        thread = order.index(int(task))
        seen[thread, syscall] += 1
        if not file.startswith(_ITS_OWN):
            found.append(Point(process, thread, syscall, seen[thread, syscall]))
    return found
