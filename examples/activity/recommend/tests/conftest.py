"""A night comes each minute, and what requirements.txt pins can be imported."""

from __future__ import annotations

import os
import runpy
import site
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2]
ROOT = EXAMPLE.parents[1]

os.environ["ACTIVITY_NIGHT"] = "60"  # to walk through a day of virtual time takes a while


@pytest.fixture(scope="session")
def pinned() -> Path:
    """The Python of the example's own environment, whose packages can be imported here too."""
    example = runpy.run_path(str(ROOT / "scripts" / "example"))
    folder = ROOT / ".demo" / "activity.venv"
    python: Path = example["prepare"](Path(sys.executable), EXAMPLE / "requirements.txt", folder)
    where = [python, "-c", example["BESIDES"]]
    found = subprocess.run(where, check=True, capture_output=True, text=True)
    site.addsitedir(found.stdout.strip())
    return python
