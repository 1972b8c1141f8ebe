"""Regular expressions of contracts, which may come from elsewhere: never run for long.

Python's engine goes back and tries again, at worst in a number of ways that grows exponentially.
That number is computed first, from the expression and the length of the text, and an expression
that may take too many is not run.
"""

from __future__ import annotations

import importlib
import math
import re
from functools import lru_cache
from typing import Any

WAYS = 200_000
"""An expression that may be tried on a text in more ways is not run."""
LONGEST = 1_000
"""A longer expression (characters) is not run."""


class Undecided(ValueError):
    """Whether a text fits an expression is not found out."""


def matches(pattern: str, text: str) -> bool:
    """Return whether an expression is found in a text. Raises Undecided."""
    if ways(pattern, len(text)) > WAYS:
        raise Undecided(f"{pattern!r} may take too long for a text of {len(text)} characters")
    return re.search(pattern, text) is not None


@lru_cache(maxsize=1024)
def ways(pattern: str, length: int) -> float:
    """Return in how many ways an expression may be tried on a text of so many characters, at most.

    Infinite for what is no expression, and for those with references back or with a look around.
    """
    if len(pattern) > LONGEST:
        return math.inf
    try:
        re.compile(pattern)
        parsed = importlib.import_module("re._parser").parse(pattern)
    except (re.error, RecursionError, OverflowError):
        return math.inf
    try:
        anchored = len(parsed) > 0 and str(parsed[0][1]) in ("AT_BEGINNING", "AT_BEGINNING_STRING")
        return _ways(parsed, length) * (1 if anchored else length + 1)
    except (RecursionError, OverflowError):
        return math.inf


def _ways(parsed: Any, length: int) -> float:
    found = 1.0
    for operation, argument in parsed:
        match str(operation):
            case "LITERAL" | "NOT_LITERAL" | "IN" | "ANY" | "AT" | "CATEGORY":
                continue
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                least, most, inner = argument
                found *= _repeated(int(least), int(most), inner, length)
            case "BRANCH":
                found *= sum(_ways(each, length) for each in argument[1])
            case "SUBPATTERN":
                found *= _ways(argument[-1], length)
            case "ATOMIC_GROUP":
                found *= _ways(argument, length)
            case _:
                return math.inf
    return found


def _repeated(least: int, most: int, inner: Any, length: int) -> float:
    each = _ways(inner, length)
    # What matches nothing is repeated no more often than there are characters, and once more.
    low, high = min(least, length + 1), min(most, length + 1)
    if each == 1:
        return float(high - low + 1)
    if each == math.inf or high * math.log(each) > math.log(WAYS) + 1:
        return math.inf
    return sum(each**count for count in range(low, high + 1))
