"""Kills a child process at a moment that nobody chose, for the suites that certify adapters."""

from __future__ import annotations

import subprocess
import sys


def run_and_kill(program: str, *arguments: str, lines: int) -> list[str]:
    """Run a Python program, ``kill -9`` it once it has printed so many lines; all that it printed.

    It must not end by itself. A last line that it had not finished is left out.
    """
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:  # noqa: S603 - our own text
        assert child.stdout is not None
        try:
            said = [child.stdout.readline() for _ in range(lines)]
        finally:
            child.kill()
        said += child.stdout.readlines()
    assert all(said[:lines]), f"the child ended by itself with {child.returncode}"
    return [line.decode().rstrip("\n") for line in said if line.endswith(b"\n")]
