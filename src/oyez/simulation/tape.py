"""The tape: every choice of a simulated run, recorded, so that the run can be repeated and shrunk.

There is one line of choices for each label. So a choice that is left out moves those of its own
label alone, and a fault stays where it was while the schedule around it is made simpler.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

Tape = dict[str, list[int]]
"""The choices made, by label, each line in the order of time."""


class Choices:
    """Makes choices, from a seed or from a tape. Choice 0 is always the tame one."""

    def __init__(self, seed: int, given: Mapping[str, Sequence[int]] | None = None) -> None:
        """``given`` is a tape to repeat; beyond its end each choice is 0."""
        self.tape: Tape = {}
        """The choices so far."""
        self._given = given
        self._chance = random.Random(seed).random  # noqa: S311 - repeatable on purpose

    def draw(self, count: int, label: str) -> int:
        """Return a number from 0 to ``count`` - 1."""
        given = self._given
        return self._note(label, int(self._chance() * count) if given is None else count - 1)

    def pick(self, rates: Sequence[float], label: str) -> int:
        """Return 0 or, at the rate of each, the number of one of ``rates``, counted from 1."""
        return self._note(label, self._among(rates) if self._given is None else len(rates))

    def _note(self, label: str, value: int) -> int:
        """Record ``value``, or what the given tape has in its place, which is no more than it."""
        line = self.tape.get(label)
        if line is None:
            line = self.tape[label] = []
        if self._given is not None:
            given = self._given.get(label, ())
            value = min(given[len(line)], value) if len(line) < len(given) else 0
        line.append(value)
        return value

    def _among(self, rates: Sequence[float]) -> int:
        left = self._chance()
        for number, rate in enumerate(rates, 1):
            left -= rate
            if left < 0:
                return number
        return 0
