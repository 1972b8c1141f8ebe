"""Kills a child process at an arbitrary moment, for the suites that certify adapters."""

from __future__ import annotations

import subprocess
import sys


def run_and_kill(program: str, *arguments: str, lines: int) -> list[str]:
    """Run a Python program, ``kill -9`` it after a number of lines, and return its output.

    It must not end by itself. An unfinished last line is left out.
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
