"""Processes in namespaces of their own, as in containers, that share the folder of a file."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from oyez.sqlite import SqliteFile

NAMESPACES = ("unshare", "--map-root-user", "--mount", "--pid", "--fork", "--net", "--ipc")
ENTER = """mount --bind "$1" "$2"
mount -t tmpfs none "$3"
TMPDIR="$3" exec "$4" -c "$5" "$2/a.db"
"""
"""Knows the folder under another path, and has a temporary folder of its own."""
RINGER = """
import asyncio, sys
from pathlib import Path
from oyez.sqlite import SqliteFile

async def main():
    file = SqliteFile(Path(sys.argv[1]), steps=("create table t (id integer)",))
    await file.open()
    await file.write(lambda c: c.execute("insert into t values (1)"), ring=True)
    await file.close()

asyncio.run(main())
"""


async def test_a_commit_in_another_container_wakes_the_listeners(tmp_path: Path) -> None:
    try:
        allowed = subprocess.run([*NAMESPACES, "true"], check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs Linux's unshare")
    if allowed.returncode:
        pytest.skip(f"may not make namespaces here: {allowed.stderr.decode().strip()}")
    for name in ("volume", "mount", "temporary"):
        (tmp_path / name).mkdir()
    places = [str(tmp_path / name) for name in ("volume", "mount", "temporary")]
    file = SqliteFile(tmp_path / "volume" / "a.db", steps=("create table t (id integer)",))
    await file.open()
    try:
        rung = asyncio.Event()
        file.on_ring(rung.set)
        command = [*NAMESPACES, "sh", "-ec", ENTER, "sh", *places, sys.executable, RINGER]
        ringer = await asyncio.create_subprocess_exec(*command)
        assert await ringer.wait() == 0
        async with asyncio.timeout(20):
            await rung.wait()
        assert await file.read(lambda c: list(c.execute("select id from t"))) == [(1,)]
    finally:
        await file.close()
