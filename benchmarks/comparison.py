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


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """What a row should show: its ratio, or with ``absolute`` its median, on one side of a limit.

    ``what`` is the row in a few words for who has not read the benchmark.
    """

    what: str
    case: str
    figure: str
    way: str
    at_least: float | None = None
    at_most: float | None = None
    absolute: bool = False

    @property
    def limit(self) -> float:
        """The value that is aimed at."""
        found = self.at_least if self.at_least is not None else self.at_most
        assert found is not None, f"{self.what}: no aim"
        return found

    def seen(self, row: Row) -> float:
        """Return what the row shows of it."""
        return row.median if self.absolute else row.ratio

    def share(self, row: Row) -> float:
        """Return how much of the aim is reached: 1 and more is all of it."""
        seen = self.seen(row)
        return seen / self.limit if self.at_least is not None else self.limit / seen


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one benchmark found, and what it aims at.

    ``lacks`` says of each other way what it does not do that Oyez does; ``notes`` say the rest.
    """

    benchmark: str
    about: str
    rows: list[Row]
    notes: list[str]
    aims: list[Aim] = []
    lacks: dict[str, str] = {}
    machine: dict[str, Any] = {}

    def aimed(self) -> list[tuple[Aim, Row]]:
        """Return each aim with its row; one whose way was left out is left out."""
        rows = {(row.case, row.figure, row.way): row for row in self.rows}
        found = [(aim, rows.get((aim.case, aim.figure, aim.way))) for aim in self.aims]
        return [(aim, row) for aim, row in found if row is not None]

    def __str__(self) -> str:
        heads = ("case", "figure", "way", "median", "oyez / it", "spread")
        lines = [
            (
                row.case,
                row.figure,
                row.way,
                number(row.median),
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
        text += [f"  {way} does not do this: {lack}" for way, lack in self.lacks.items()]
        for aim, row in self.aimed():
            side = "at least" if aim.at_least is not None else "at most"
            verdict = "met" if aim.share(row) >= 1 else "missed"
            text.append(
                f"  aim {verdict}: {aim.what}: {number(aim.seen(row))}, {side} {number(aim.limit)}"
            )
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


def number(value: float) -> str:
    """A figure as it is printed: three digits, or all that come before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
