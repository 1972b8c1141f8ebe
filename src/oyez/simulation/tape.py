"""The tape: every choice of a simulated run, recorded, so that the run can be repeated and shrunk.

There is one line of choices for each label. So a choice that is left out moves those of its own
label alone, and a fault stays where it was while the schedule around it is made simpler.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

Tape = dict[str, list[int]]
"""The choices made, by label, each line in the order of time."""


class Choices:
    """Makes choices, from a seed or from a tape. Choice 0 is always the tame one."""

    def __init__(self, seed: int, given: Mapping[str, Sequence[int]] | None = None) -> None:
        """``given`` is a tape to repeat; beyond its end each choice is 0."""
        self.tape: Tape = defaultdict(list)
        """The choices so far."""
        self._given = given
        self._chance = random.Random(seed).random  # noqa: S311 - repeatable on purpose

    def draw(self, count: int, label: str) -> int:
        """Return a number from 0 to ``count`` - 1."""
        if self._given is not None:
            return self._repeat(label, count - 1)
        value = int(self._chance() * count)
        self.tape[label].append(value)
        return value

    def pick(self, rates: Sequence[float], label: str) -> int:
        """Return 0 or, at the rate of each, the number of one of ``rates``, counted from 1."""
        if self._given is not None:
            return self._repeat(label, len(rates))
        left, value = self._chance(), 0
        for number, rate in enumerate(rates, 1):
            left -= rate
            if left < 0:
                value = number
                break
        self.tape[label].append(value)
        return value

    def _repeat(self, label: str, most: int) -> int:
        """Return what the given tape has, no more than ``most``, and record that."""
        assert self._given is not None
        line, given = self.tape[label], self._given.get(label, ())
        value = min(given[len(line)], most) if len(line) < len(given) else 0
        line.append(value)
        return value
