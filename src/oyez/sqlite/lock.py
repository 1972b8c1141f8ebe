"""The advisory lock by which writers of several processes queue for the file."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Lock:
    """A lock on a file beside the database; the kernel drops it when its process dies.

    The lock file also says whether the database has ever had a schema.
    """

    def __init__(self, path: Path) -> None:
        """Create the lock file of the database at ``path`` if need be. Raises ``OSError``."""
        self._file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> None:
        """Wait until no other process has the lock, and take it."""
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def drop(self) -> None:
        """Let the next one have it. Safe when it is not taken."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def marked(self) -> bool:
        """Return whether `mark` was ever called for this database."""
        return os.fstat(self._file).st_size > 0

    def mark(self) -> None:
        """Note that the database has its schema."""
        if not self.marked():
            os.write(self._file, b"in use\n")

    def close(self) -> None:
        """Drop the lock and close its file."""
        os.close(self._file)
