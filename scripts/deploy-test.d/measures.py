"""What is computed of what was seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Place = tuple[str, str, int]
"""A service, a stream, a partition of it."""


class Handovers:
    """Follows who owns each partition, from one look to the next.

    A pause is from the last look at which the one owned a partition to the first at which the other
    did: at most two looks longer than it was.
    """

    def __init__(self) -> None:
        self._owners: dict[Place, str] = {}
        self._seen: dict[Place, float] = {}
        self.pauses: dict[Place, list[float]] = {}
        self.seen: list[tuple[float, float, Place, str, str]] = []
        """Each handover: its time, its pause, the place, who had it and who has it."""

    def see(self, at: float, owners: Mapping[Place, str | None]) -> None:
        """Take in a look: who owns what, None for nobody."""
        for place, owner in owners.items():
            if owner is None:
                continue
            before = self._owners.get(place)
            if before is not None and before != owner:
                pause = at - self._seen[place]
                self.pauses.setdefault(place, []).append(pause)
                self.seen.append((at, pause, place, before, owner))
            self._owners[place] = owner
            self._seen[place] = at

    @property
    def places(self) -> int:
        """How many partitions were owned at all."""
        return len(self._owners)

    @property
    def count(self) -> int:
        """How many times a partition changed its owner."""
        return sum(len(pauses) for pauses in self.pauses.values())

    @property
    def worst(self) -> tuple[float, str]:
        """The longest pause, and whose it was."""
        found = [
            (pause, f"{service}: {stream}[{partition}]")
            for (service, stream, partition), pauses in self.pauses.items()
            for pause in pauses
        ]
        return max(found, default=(0.0, "none"))

    def all_pauses(self) -> list[float]:
        """Return every pause."""
        return [pause for pauses in self.pauses.values() for pause in pauses]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that at least this share of the values does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else 0.0


def changes(numbers: Sequence[int]) -> list[int]:
    """Return the numbers without repetitions in a row."""
    return [n for n, before in zip(numbers, [None, *numbers], strict=False) if n != before]


def exactly_once(counted: Mapping[tuple[str, int], int], wanted: Sequence[tuple[str, int]]) -> str:
    """Return what is wrong with effects that should be there once each; empty if nothing."""
    lost = sum(counted.get(each, 0) == 0 for each in wanted)
    twice = sum(count > 1 for count in counted.values())
    unknown = len(set(counted) - set(wanted))
    told = {"lost": lost, "more than once": twice, "unknown": unknown}
    return ", ".join(f"{count} {what}" for what, count in told.items() if count)


def rises_once(steps: Sequence[int], most: int) -> bool:
    """Return whether numbers go from 1 up to ``most`` and down to 1, without a way back between."""
    if not steps or (steps[0], max(steps), steps[-1]) != (1, most, 1):
        return False
    top = steps.index(most)
    up, down = list(steps[: top + 1]), list(steps[top:])
    return up == sorted(up) and down == sorted(down, reverse=True)
