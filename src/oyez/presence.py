"""Detects whether another process on this machine is still alive."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path


class Presence:
    """A file lock by which other processes on this machine detect at once that this one died.

    The lock is on a small file of its own beside the database; the kernel releases it when the
    process ends. A paused process keeps its lock: that case is covered by leases.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: int | None = None
        self._mine: Path | None = None

    def show(self, owner: str) -> None:
        """Show that the process is alive, under this name."""
        self._mine = self._file_of(owner)
        self._held = os.open(self._mine, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._held, fcntl.LOCK_EX)

    def hide(self) -> None:
        """Release the lock. Safe when never shown and when called twice."""
        if self._held is not None and self._mine is not None:
            self._mine.unlink(missing_ok=True)
            os.close(self._held)
            self._held = None

    def has_died(self, owner: str) -> bool:
        """Return whether a process shown under this name has died; True only once."""
        file = self._file_of(owner)
        if file == self._mine:
            return False
        try:
            found = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False  # it left in order, or was found dead before
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            file.unlink(missing_ok=True)
            return True
        finally:
            os.close(found)

    def _file_of(self, owner: str) -> Path:
        digest = hashlib.sha256(owner.encode()).hexdigest()[:16]
        return self._path.with_name(f"{self._path.name}.owner-{digest}")
