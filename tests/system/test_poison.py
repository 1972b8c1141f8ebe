"""G4: a poison event harms itself alone, even when it kills the process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from ticks import Ticks, wait_for

OTHERS = tuple(f"clock-{n}" for n in range(20))


@pytest.fixture
async def ticks(tmp_path: Path) -> AsyncIterator[Ticks]:
    system = Ticks(tmp_path)
    (system.root / "broken").touch()
    await system.open()
    yield system
    await system.close()


def dead_letters(ticks: Ticks, *service: str) -> list[dict[str, Any]]:
    letters: list[dict[str, Any]] = json.loads(
        ticks.run("dead", "list", *service, "--json").stdout
    )["letters"]
    return letters


async def test_an_event_that_always_fails_is_dead_and_is_healed_by_a_redrive(ticks: Ticks) -> None:
    for _ in range(3):
        await ticks.tick("poison", *OTHERS)
    ticks.start_replica()
    wait_for(lambda: len(ticks.seen()) == 3 * len(OTHERS))
    wait_for(lambda: len(dead_letters(ticks)) == 3)
    letters = dead_letters(ticks, "counter")
    assert {letter["key"] for letter in letters} == {"poison"}
    assert letters[0]["reason"] == "failed 3 of 3 attempts: ValueError: tick 1 is poison"
    shown = json.loads(ticks.run("dead", "show", "counter", "1", "--json").stdout)
    assert "raise ValueError" in shown["traceback"]
    assert [entry["attempt"] for entry in shown["history"]] == [1, 2, 3]
    assert ticks.seen("poison") == []

    (ticks.root / "broken").unlink()
    done = ticks.run("dead", "redrive", "counter", "--all", "--yes")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: len(ticks.seen("poison")) == 3)
    assert dead_letters(ticks) == []
    assert ticks.run("dead", "redrive", "counter", "1").returncode == 1


async def test_an_event_that_kills_its_process_is_bounded(ticks: Ticks) -> None:
    await ticks.tick(*OTHERS)
    await ticks.tick("deadly", *OTHERS)
    deaths = 0
    replica = ticks.start_replica()

    def dead() -> int:
        nonlocal deaths, replica
        if replica.poll() is not None:
            assert replica.returncode == 66
            deaths += 1
            assert deaths < 12, "nothing stops it"
            replica = ticks.start_replica()
        return len(ticks.query("select * from oyez_dead"))

    wait_for(dead, seconds=90.0)
    wait_for(lambda: len(ticks.seen()) == 2 * len(OTHERS))
    ((reason, handler, key),) = ticks.query("select reason, handler, key from oyez_dead")
    assert (handler, key) == ("count", "deadly")
    assert "the process died" in str(reason)
    assert replica.poll() is None
