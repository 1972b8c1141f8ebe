"""Splits the records of a call into parts that may be in flight at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf


def windows(sizes: Sequence[int], size: int, count: float = inf) -> Iterator[slice]:
    """Cut items of these sizes into runs of at most ``count`` items and ``size`` bytes.

    One item may exceed the size alone. No items make no window.
    """
    begin, held = 0, 0
    for index, length in enumerate(sizes):
        if index > begin and (index - begin >= count or held + length > size):
            yield slice(begin, index)
            begin, held = index, 0
        held += length
    if begin < len(sizes):
        yield slice(begin, len(sizes))
