"""The guests of the shop, in Go and in TypeScript: their own tests, the rules of the wire, sizes.

``OYEZ_TEST_BROKERS`` names the brokers of the rules, such as ``nats kafka``; ``nats`` by default.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import guests
from oyez.wire import RULES, Level
from servers import server

COMMANDS = {
    "fraud-check": ["go", "test", "-p", "2", "-count=1", "."],
    "loyalty": ["npm", "test", "--silent"],
}
BROKERS = os.environ.get("OYEZ_TEST_BROKERS", "nats").split()


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


@pytest.mark.timeout(280)
@pytest.mark.parametrize("broker", BROKERS)
async def test_the_guests_keep_every_rule(broker: str) -> None:
    if guests.missing():
        pytest.skip(f"{guests.missing()} not installed: the guests can't be built")
    guests.build()
    told = server(broker)
    kept = await asyncio.gather(*(rules_kept(name, told.url) for name in COMMANDS))
    wanted = {rule for rule, each in RULES.items() if Level.SERVICE in each.levels}
    wanted -= set() if broker == "nats" else {"W12"}  # Kafka's connection is not cut here
    assert dict(zip(COMMANDS, kept, strict=True)) == dict.fromkeys(COMMANDS, wanted)


async def rules_kept(name: str, url: str) -> set[str]:
    """The rules that a guest keeps, by the referee."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "oyez", "conformance", "run", "--json", "--level", "service",
        "--broker", url, "--start", " ".join(guests.COMMANDS[name]), "--kills", "1",
        stdout=pipe, stderr=pipe,
    )  # fmt: skip
    said, error = await process.communicate()
    assert process.returncode == 0, said.decode() + error.decode()
    return {each["rule"] for each in json.loads(said)["judgements"] if each["outcome"] == "kept"}


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
