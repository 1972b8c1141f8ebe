"""What a benchmark runs on: a scratch folder on a real disk, and a line that describes the machine.

A folder in memory would make every commit free, so a temporary folder on tmpfs is named as such.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import apsw
import msgspec

from oyez.ambient import SystemAmbient

_MEMORY = ("tmpfs", "ramfs")


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What every benchmark is given."""

    folder: Path
    quick: bool
    ambient: SystemAmbient

    def fresh(self, name: str) -> Path:
        """A new empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def pick(self, quick: int, full: int) -> int:
        """A size: the small one when the run is to be quick."""
        return quick if self.quick else full


def describe(folder: Path) -> dict[str, Any]:
    """The machine in a few words, with the time that one small fsync takes here."""
    kind = _file_system(folder)
    found: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "file_system": kind,
        "fsync_ms": round(_fsync(folder) * 1000, 3),
        "load": round(os.getloadavg()[0], 1),
    }
    if kind in _MEMORY:
        found["warning"] = f"{folder} is in memory: a commit costs nothing here; give --folder"
    return found


def _fsync(folder: Path) -> float:
    times = []
    with open(folder / "fsync", "wb", buffering=0) as file:
        for _ in range(32):
            file.write(b"x" * 4096)
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return median(times)


def _file_system(folder: Path) -> str:
    best, kind = Path("/"), "unknown"
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, point, found, *_ = line.split(" ")
        path = Path(point)
        if folder.resolve().is_relative_to(path) and len(path.parts) >= len(best.parts):
            best, kind = path, found
    return kind
