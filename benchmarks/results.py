"""What a run of the benchmarks found, for people: a page of tables, and a plot.

The page says of each aim what was seen, met or not, then shows every benchmark's table as it was
printed. The plot has a bar for each aim, as a share of it on a logarithmic axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.comparison import Aim, Report, Row, number

WIDTH = 970
"""Of the plot, in pixels."""
_LINE, _LEFT, _RIGHT, _TOP = 26, 470, 180, 64
_LOW, _HIGH = 0.05, 20.0
_TICKS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
_STYLE = """
 svg { --paper:#fff; --ink:#1b1f24; --soft:#5b6470; --edge:#d5dae0; --met:#0f8a5f; --not:#b35c00;
  background:var(--paper) }
 @media (prefers-color-scheme: dark) { svg { --paper:#14171b; --ink:#e8ebef; --soft:#9aa4b0;
  --edge:#333b45; --met:#5fd3a5; --not:#ffb061 } }
 text { font:13px system-ui, sans-serif; fill:var(--ink) } .soft { fill:var(--soft) }
 .title { font-size:16px; font-weight:600 } line { stroke:var(--edge) }
 .one { stroke:var(--ink); stroke-dasharray:4 3 } .met { fill:var(--met) } .not { fill:var(--not) }
"""


def page(
    reports: Sequence[Report], machine: Mapping[str, Any], commit: str, day: str, *, quick: bool
) -> str:
    """Return the page, in Markdown. ``quick``: it was run at small sizes."""
    run = (
        "`make bench ARGS=--quick`, at small sizes and with few rounds,"
        if quick
        else "`make bench`"
    )
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [
        "# Results of the benchmarks",
        "",
        f"Written by {run} on {day}, of commit {commit}, on a machine with {about}.",
        "Each ratio is the median of one interleaved run's rounds, between their least and most.",
        "",
        "| aim | seen | wanted | |",
        "| --- | --- | --- | --- |",
    ]
    for report in reports:
        for aim, row in report.aimed():
            verdict = "met" if aim.share(row) >= 1 else "**missed**"
            lines.append(f"| {aim.what} | {_seen(aim, row)} | {_wanted(aim)} | {verdict} |")
    for report in reports:
        lines += ["", f"## {report.benchmark}", "", f"{report.about}", ""]
        lines += ["| case | figure | way | median | oyez / it | spread |"]
        lines += ["| --- | --- | --- | ---: | ---: | --- |"]
        lines += [
            f"| {row.case} | {row.figure} | {row.way} | {number(row.median)} | {row.ratio:.2f} "
            f"| {row.low:.2f} … {row.high:.2f} |"
            for row in report.rows
        ]
        remarks = [*report.notes]
        remarks += [f"{way} does not do this: {lack}" for way, lack in report.lacks.items()]
        lines += ["", *(f"- {remark}" for remark in remarks)] if remarks else []
    return "\n".join(lines) + "\n"


def plot(reports: Sequence[Report], commit: str, day: str) -> str:
    """Return the plot, as an SVG picture that is readable on light and dark paper."""
    bars = [(aim, row) for report in reports for aim, row in report.aimed()]
    bottom = _TOP + _LINE * len(bars)
    height = bottom + 40
    title = "What was aimed at, and how much of it is reached"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{title}</title><style>{_STYLE}</style>",
        f'<text class="title" x="16" y="26">{title}</text>',
        f'<text class="soft" x="16" y="46">commit {escape(commit)}, {day}; seen, and wanted</text>',
    ]
    for tick in _TICKS:
        x, kind = _x(tick), ' class="one"' if tick == 1 else ""
        parts.append(f'<line{kind} x1="{x}" x2="{x}" y1="{_TOP - 6}" y2="{bottom}"/>')
        parts.append(
            f'<text class="soft" x="{x}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
        )
    for index, (aim, row) in enumerate(bars):
        share, y = aim.share(row), _TOP + index * _LINE
        begin, end = sorted((_x(1.0), _x(share)))
        kind = "met" if share >= 1 else "not"
        label = f"{_seen(aim, row)} ({_wanted(aim)})"
        parts += [
            f'<text x="{_LEFT - 12}" y="{y + 15}" text-anchor="end">{escape(aim.what)}</text>',
            f'<rect class="{kind}" x="{begin}" y="{y + 4}" width="{max(end - begin, 2)}"'
            f' height="{_LINE - 10}" rx="2"/>',
            f'<text x="{WIDTH - _RIGHT + 8}" y="{y + 15}">{escape(label)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(share: float) -> float:
    inside = min(max(share, _LOW), _HIGH)
    along = math.log(inside / _LOW) / math.log(_HIGH / _LOW)
    return round(_LEFT + along * (WIDTH - _LEFT - _RIGHT), 1)


def _seen(aim: Aim, row: Row) -> str:
    return number(aim.seen(row)) + ("" if aim.absolute else " times")


def _wanted(aim: Aim) -> str:
    side = "≥" if aim.at_least is not None else "≤"
    return f"{side} {aim.limit:,g}" + ("" if aim.absolute else " times")
