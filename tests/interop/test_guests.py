"""The guests of the shop by their own tests, in Go and in TypeScript, and how small they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import guests

COMMANDS = {
    "fraud-check": ["go", "test", "-p", "2", "-count=1", "."],
    "loyalty": ["npm", "test", "--silent"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_guest_passes_its_own_tests(name: str) -> None:
    if guests.missing():
        pytest.skip(f"{guests.missing()} not installed: {name} can't be built")
    guests.build()
    done = subprocess.run(
        COMMANDS[name],
        cwd=guests.FOLDER / name,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "rule", [("fraud-check/guest.go", "fraud-check/store.go"), ("loyalty/src/guest.ts",)]
)
def test_the_inbox_rule_stays_small(rule: tuple[str, ...]) -> None:
    """What another team has to write, beside its broker's client and its own effects."""
    for file in rule:
        assert lines(guests.FOLDER / file) < 250


def test_no_lock_names_a_registry() -> None:
    lock = (guests.FOLDER / "loyalty" / "package-lock.json").read_text()
    assert '"resolved"' not in lock


def lines(file: Path) -> int:
    """Lines that are neither empty nor a comment."""
    text = (line.strip() for line in file.read_text().splitlines())
    return sum(bool(line) and not line.startswith(("//", "/*", "*")) for line in text)
