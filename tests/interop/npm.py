"""Packages from npm for tests: each folder that has a package.json installs its own, once."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest


def installed(folder: Path) -> Path:
    """Return the folder with what its lock names in ``node_modules``; else skip, and say why."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: scripts/system-packages")
    lock = folder / "package-lock.json"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = folder / "node_modules" / ".installed"
    with lock.open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # several test runs may share the tree
        if not stamp.exists() or stamp.read_text() != wanted:
            command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            try:
                done = subprocess.run(
                    command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
                )
                failure = done.stderr if done.returncode else ""
            except subprocess.TimeoutExpired:
                failure = "no answer within 300 s"
            if failure:
                pytest.skip(f"npm can't install {folder}: {failure.strip()[-300:]}")
            stamp.write_text(wanted)
    return folder
