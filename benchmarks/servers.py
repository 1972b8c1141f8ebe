"""The servers that `scripts/services` runs, for benchmarks against them."""

from __future__ import annotations

import json
import os
from pathlib import Path

FOLDER = Path(os.environ.get("OYEZ_SERVICES") or Path(__file__).resolve().parents[1] / ".services")


class NotRunning(Exception):
    """The server that a benchmark needs was not brought up."""


def url(name: str) -> str:
    """The server's URL. Raises NotRunning."""
    try:
        found: str = json.loads((FOLDER / "services.json").read_text())[name]["url"]
    except (FileNotFoundError, KeyError) as error:
        raise NotRunning(f"{name} is not running: scripts/services up {name}") from error
    return found
