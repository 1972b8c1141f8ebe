"""A process that is told to stop ends in time and with 0, whatever holds up its store."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oyez.testing.ticks import ticking, until

BOUND = 40.0
"""Seconds within which it ends: its grace of 5 s, 2 s for each of the last steps, and a margin."""


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process writes to the file, and goes on writing."""
    holder = os.open(file, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(holder)


async def test_a_drain_is_bounded_while_another_process_holds_the_files_lock(
    tmp_path: Path,
) -> None:
    async with ticking(tmp_path / "ticks") as ticks:
        (replica,) = await ticks.started()
        await ticks.tick("clock-0", "clock-1")
        await ticks.all_seen("clock-0", "clock-1")
        with locked(ticks.root / ".oyez" / "counter.db.lock"):
            await ticks.tick("clock-0", "clock-1")
            replica.send_signal(signal.SIGTERM)
            await until(lambda: _ended(replica), BOUND)
        assert replica.returncode == 0
        await ticks.started()
        await ticks.all_seen("clock-0", "clock-1")


async def test_a_start_that_waits_for_the_files_lock_ends_with_0(tmp_path: Path) -> None:
    async with ticking(tmp_path / "ticks") as ticks:
        with locked(ticks.root / ".oyez" / "counter.db.lock"):
            replica = ticks.start_replica()
            log = ticks.root / "replica0.log"

            async def waits() -> bool:
                return _waits_for_a_lock(replica.pid)

            await until(waits)
            replica.send_signal(signal.SIGTERM)
            await until(lambda: _ended(replica), BOUND)
        assert replica.returncode == 0, log.read_text()


@pytest.mark.parametrize("moment", range(6))
def test_sigterm_during_the_start_ends_with_0(tmp_path: Path, moment: int) -> None:
    """At whatever import: once the command has begun, no moment gives a signal's code."""
    (tmp_path / "oyez.toml").write_text(
        '[system]\nname = "till"\n[services.desk]\napp = "desk:service"\n'
    )
    (tmp_path / "desk.py").write_text(
        "import os, signal\nfrom oyez import Service\n"
        f"if {moment} == 0: os.kill(os.getpid(), signal.SIGTERM)\n"
        'service = Service("desk")\n\n'
        "@service.provides\nasync def given() -> int:\n"
        f"    if {moment} == 1: os.kill(os.getpid(), signal.SIGTERM)\n    return 1\n"
        f"if {moment} > 1:\n"
        "    import threading\n"
        f"    threading.Timer({moment} / 20, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "oyez", "run", "desk"], cwd=tmp_path, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr


async def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def _waits_for_a_lock(pid: int) -> bool:
    """Whether the process is queued for a lock, by the kernel's list of those that wait."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {pid} " in line for line in lines)
