"""Shrinking: the same failure with as few faults, and as tame a schedule, as it needs."""

from __future__ import annotations

import time
from collections.abc import Callable

from oyez.simulation.run import Result
from oyez.simulation.tape import Tape

Again = Callable[[int, Tape], Result]
"""Runs a seed with a tape, and returns the result."""

MOST = 250
"""The limit of runs that are made to shrink a failure."""
SECONDS = 40.0
"""The limit of real seconds that they take together."""
PORTS = ("commit", "publish", "outside")
"""The labels of the choices that matter most."""


def shrink(found: Result, again: Again, *, most: int = MOST) -> Result:
    """Return the simplest run with the same failure that was found within ``most`` runs."""
    return _Shrinking(found, again, most).best()


class _Shrinking:
    """Tries tapes with more zeros: whole labels, all but one choice, halves, and each choice."""

    def __init__(self, found: Result, again: Again, most: int) -> None:
        self._found = found
        self._again = again
        self._wanted = {_kind(each) for each in found.failures}
        self._left = most
        self._end = time.monotonic() + SECONDS

    def best(self) -> Result:
        """Return the best that was found."""
        for label in sorted(self._found.tape, key=lambda each: each != "next"):
            if any(self._found.tape.get(label, ())):
                self._try({**self._found.tape, label: []})
        self._alone(self._left // 2)
        changed = True
        while changed and self._left > 0:
            changed = False
            for label in list(self._found.tape):
                changed = self._halve(label) or changed
        return self._found

    def _alone(self, most: int) -> None:
        """Try each choice that is left as the only one, at each place, with at most so many runs.

        Without the faults before it, what must be hit for this failure stands at another place.
        """
        least = self._left - most
        tape = self._found.tape
        for label in sorted(tape, key=lambda each: (each not in PORTS, len(tape[each]))):
            for value in sorted({*tape[label]} - {0}):
                for index in range(len(tape[label])):
                    if self._left <= least or self._try({label: [0] * index + [value]}):
                        return

    def _halve(self, label: str) -> bool:
        changed = False
        size = sum(map(bool, self._found.tape.get(label, ())))
        while size >= 1 and self._left > 0:
            at = 0
            while self._left > 0:
                line = list(self._found.tape.get(label, ()))
                places = [index for index, value in enumerate(line) if value]
                block = places[at : at + size]
                if not block:
                    break
                for index in block:
                    line[index] = 0
                if self._try({**self._found.tape, label: line}):
                    changed = True
                else:
                    at += size
            size //= 2
        for index, value in enumerate(list(self._found.tape.get(label, ()))):
            if value > 1 and self._left > 0 and label not in ("next", "rank"):
                line = list(self._found.tape[label])
                if index < len(line):
                    line[index] = 1
                    self._try({**self._found.tape, label: line})
        return changed

    def _try(self, tape: Tape) -> bool:
        if self._left <= 0 or time.monotonic() > self._end:
            self._left = 0
            return False
        self._left -= 1
        result = self._again(self._found.seed, tape)
        if not self._wanted & {_kind(each) for each in result.failures}:
            return False
        if _weight(result.tape) >= _weight(self._found.tape):
            return False
        self._found = result
        return True


def _weight(tape: Tape) -> int:
    return sum(value for line in tape.values() for value in line)


def _kind(failure: str) -> str:
    """Return what a failure begins with, without what differs from run to run."""
    return " ".join(
        word for word in failure.split()[:7] if not any(char.isdigit() for char in word)
    )
