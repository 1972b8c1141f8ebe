"""The newcomer's path of docs/guide/contracts.md, done as it says, in a clone of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "contracts.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PREPARED = ("git clone", "make", "source")
"""How the commands begin that this test does in its own way: it has the environment already."""


def test_the_newcomers_path(tmp_path: Path) -> None:
    clone = tmp_path / "oyez"
    shutil.copytree(
        ROOT / "examples" / "shop",
        clone / "examples" / "shop",
        ignore=shutil.ignore_patterns(".oyez", "__pycache__", ".demo"),
    )
    git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    environment = {n: v for n, v in os.environ.items() if not n.startswith("OYEZ_")} | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONDONTWRITEBYTECODE": "1",  # a module that is changed twice in a second
        "COLUMNS": "200",
    }
    folder, done, started = clone, 0, time.monotonic()
    for block in _BLOCK.findall(PAGE.read_text()):
        for step in block.split("$ ")[1:]:
            command, _, expected = step.partition("\n")
            if command.startswith(PREPARED):
                continue
            if command.startswith("cd "):
                folder /= command.removeprefix("cd ")
                continue
            ran = subprocess.run(
                command,
                shell=True,
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert like(expected, ran.stdout), f"$ {command}\n{ran.stdout}{ran.stderr}"
            done += 1
    assert done >= 6
    print(f"the newcomer's path: {time.monotonic() - started:.1f} s for {done} commands")


def like(expected: str, found: str) -> bool:
    """Whether they are the same, where ``…`` is anything."""
    parts = (re.escape(part) for part in expected.strip().split("…"))
    lines = "\n".join(line.rstrip() for line in found.strip().splitlines())
    return re.fullmatch(".*".join(parts), lines, re.DOTALL) is not None
