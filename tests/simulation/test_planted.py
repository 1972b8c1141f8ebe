"""Bugs of each kind are found; how many seeds that takes is told by the large form.

By default a few of them, within few seeds. ``OYEZ_TEST_SIMULATION=1000`` searches for all of them
within that many seeds each, and prints how many it took.
"""

from __future__ import annotations

import os
import statistics

import pytest
from mended import MENDED
from planted import CORE, USERS, charge_without_key, sound

from oyez.simulation.run import run
from oyez.simulation.search import search
from oyez.simulation.shrink import shrink
from oyez.simulation.story import text

MOST = int(os.environ.get("OYEZ_TEST_SIMULATION", "0"))
QUICK = {
    "charge_without_key",
    "key_from_uuid4",
    "read_modify_write",
    "late_event_ignored",
    "own_commit",
    "global_cache",
    "task_left_behind",
    "outbox_reversed",
    "removed_before_published",
    "retry_forgets",
    "no_fence",
    "the_dead_keep_their_lease",
}
TOOK: dict[str, int] = {}


def names(bugs: dict[str, object]) -> list[str]:
    """Return the bugs that are searched for."""
    return [name for name in bugs if MOST or name in QUICK]


@pytest.mark.parametrize("name", names({**USERS}))
def test_a_bug_of_a_user_is_found(name: str) -> None:
    found = search(USERS[name](), range(MOST or 40), shrinks=False)
    assert found.failure is not None
    TOOK[name] = found.seeds


@pytest.mark.parametrize("name", names({**CORE}))
def test_a_bug_of_the_core_is_found(name: str) -> None:
    plan = sound()
    run(plan, 0)
    with CORE[name]():
        found = search(plan, range(MOST or 40), shrinks=False)
    assert found.failure is not None
    TOOK[name] = found.seeds


@pytest.mark.parametrize("name", USERS)
def test_what_is_mended_is_not_accused(name: str) -> None:
    found = search(MENDED[name](), range(MOST or 15), shrinks=False)
    assert found.failure is None, found.failure.failures


def test_a_sound_system_is_not_accused() -> None:
    found = search(sound(), range(MOST or 40), shrinks=False)
    assert found.failure is None, found.failure.failures
    assert found.seeds == (MOST or 40)


def test_a_failure_is_made_a_short_story() -> None:
    found = search(charge_without_key(), range(100), shrinks=False).failure
    assert found is not None
    plan = charge_without_key()
    run(plan, 0)
    again = search(plan, [found.seed], shrinks=False).failure
    assert again is not None
    assert again.trace == found.trace
    short = shrink(again, lambda seed, tape: run(plan, seed, tape), most=120)
    assert short.failures
    faults = [each for each in short.story if each.fault]
    assert len(faults) <= 3  # one fault, and the end of all
    told = text(short, f"oyez simulate --seed {short.seed}")
    assert "Bank.pay" in told
    assert told.endswith(f"again: oyez simulate --seed {short.seed}")


def test_the_seeds_that_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    assert TOOK or not MOST
    if TOOK:
        with capsys.disabled():
            print()
            for name, seeds in TOOK.items():
                print(f"{name:28} {seeds:5}")
            took = TOOK.values()
            print(f"{len(took)} bugs: median {statistics.median(took):g}, worst {max(took)}")
