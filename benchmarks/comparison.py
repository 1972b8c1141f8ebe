"""Runs several ways to do one thing in turn, and says how the first compares to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import Any

import msgspec

Figures = dict[str, float]
"""What one turn measured, by figure, such as ``{"events/s": 5100.0}``."""


DEADLINE = 300.0
"""Seconds after which a turn that hangs ends the run with its name."""


class Way(msgspec.Struct, frozen=True):
    """One way to do the thing; ``turn`` does it once. What it prepares is its own affair."""

    name: str
    turn: Callable[[], Awaitable[Figures]]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way's figure: the median of its rounds, and the first way's as a multiple of it.

    ``ratio`` is the median of the rounds' own ratios, so what slowed a whole round cancels out;
    ``low`` and ``high`` are the smallest and the largest of them.
    """

    case: str
    figure: str
    way: str
    median: float
    ratio: float
    low: float
    high: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one benchmark found."""

    benchmark: str
    about: str
    rows: list[Row]
    notes: list[str]
    machine: dict[str, Any] = {}

    def __str__(self) -> str:
        heads = ("case", "figure", "way", "median", "oyez / it", "spread")
        lines = [
            (
                row.case,
                row.figure,
                row.way,
                _number(row.median),
                f"{row.ratio:.2f}",
                f"{row.low:.2f} … {row.high:.2f}",
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
        text = [f"{self.benchmark}: {self.about}"]
        for line in (heads, *lines):
            cells = [
                cell.rjust(width) if index > 2 else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            text.append(f"  {'  '.join(cells)}".rstrip())
        text += [f"  {note}" for note in self.notes]
        return "\n".join(text)


async def interleave(case: str, ways: Sequence[Way], rounds: int) -> list[Row]:
    """Give each way one turn a round, each round beginning with another way.

    Before the first, each has a turn that does not count.
    """
    for way in ways:
        await _turn(case, way)
    found: dict[str, list[Figures]] = {way.name: [] for way in ways}
    for number in range(rounds):
        first = number % len(ways)
        for way in (*ways[first:], *ways[:first]):
            found[way.name].append(await _turn(case, way))
    return [
        _row(case, figure, way.name, found[ways[0].name], found[way.name])
        for figure in found[ways[0].name][0]
        for way in ways
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


async def _turn(case: str, way: Way) -> Figures:
    try:
        async with asyncio.timeout(DEADLINE):
            return await way.turn()
    except TimeoutError as error:
        raise TimeoutError(f"{case}: {way.name} did not end within {DEADLINE:.0f} s") from error


def _row(case: str, figure: str, way: str, own: list[Figures], its: list[Figures]) -> Row:
    ratios = [a[figure] / b[figure] for a, b in zip(own, its, strict=True)]
    return Row(
        case=case,
        figure=figure,
        way=way,
        median=median(turn[figure] for turn in its),
        ratio=median(ratios),
        low=min(ratios),
        high=max(ratios),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
