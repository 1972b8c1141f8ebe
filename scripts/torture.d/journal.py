"""The journal of a run: what was asked, answered and done to the system, a JSON line each.

A line is on disk before `Journal.write` returns: what the journal says was answered, was answered,
whatever became of the machine afterwards.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

Line = dict[str, Any]
"""A line: ``at`` in seconds since 1970, ``kind``, and what belongs to the kind."""


class Journal:
    """Appends to a file; several may not write to one."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, kind: str, **fields: object) -> None:
        """Append a line, and return when it is on disk."""
        line = json.dumps({"at": time.time(), "kind": kind, **fields}) + "\n"
        os.write(self._file, line.encode())
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read(path: Path) -> list[Line]:
    """Return every whole line; one that a crash has cut off at the end says nothing."""
    *whole, rest = path.read_text().split("\n")
    del rest
    return [json.loads(line) for line in whole]
