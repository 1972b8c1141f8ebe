"""A forecast as a picture: what arrives, the replicas, what waits, and how old it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

from oyez.scaling.forecast import Forecast, Moment

WIDTH = 970
"""Of the picture, in pixels."""
_LEFT, _RIGHT, _TOP = 90, 20, 72
_PANEL, _GAP = 96, 40
_STYLE = """
 svg { --paper:#fff; --ink:#1b1f24; --soft:#5b6470; --edge:#d5dae0; --line:#0b62b8;
  background:var(--paper) }
 @media (prefers-color-scheme: dark) { svg { --paper:#14171b; --ink:#e8ebef; --soft:#9aa4b0;
  --edge:#333b45; --line:#6bb5ff } }
 text { font:13px system-ui, sans-serif; fill:var(--ink) } .soft { fill:var(--soft) }
 .title { font-size:16px; font-weight:600 } line { stroke:var(--edge) }
 path { stroke:var(--line); stroke-width:1.5; fill:none; stroke-linejoin:round }
"""


class _Panel(NamedTuple):
    title: str
    value: Callable[[Moment], float]


_PANELS = (
    _Panel("events a second that arrive", lambda each: each.inflow),
    _Panel("replicas", lambda each: float(each.replicas)),
    _Panel("events that wait", lambda each: each.lag),
    _Panel("seconds that the oldest has waited", lambda each: each.oldest),
)


def chart(found: Forecast, title: str, about: Sequence[str]) -> str:
    """Return the picture, SVG that is readable on light and dark paper; ``about`` are its notes."""
    end = found.moments[-1].at
    top = _TOP + 18 * max(0, len(about) - 1)
    height = top + len(_PANELS) * (_PANEL + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
    ]
    for number, note in enumerate(about):
        parts.append(f'<text class="soft" x="16" y="{46 + 18 * number}">{escape(note)}</text>')
    for number, panel in enumerate(_PANELS):
        parts += _draw(found.moments, panel, top + number * (_PANEL + _GAP), end)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw(moments: Sequence[Moment], panel: _Panel, top: int, end: float) -> list[str]:
    most = max(panel.value(each) for each in moments) or 1.0
    bottom, right = top + _PANEL, WIDTH - _RIGHT
    parts = [f'<text x="{_LEFT}" y="{top - 6}">{escape(panel.title)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = round(bottom - share * _PANEL, 1)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="soft" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">'
            f"{_short(share * most)}</text>"
        )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = round(_LEFT + share * (right - _LEFT), 1)
        anchor = "end" if share == 1 else "middle"
        parts.append(
            f'<text class="soft" x="{x}" y="{bottom + 16}" text-anchor="{anchor}">'
            f"{clock(share * end)}</text>"
        )
    points = [
        (
            round(_LEFT + each.at / end * (right - _LEFT), 1),
            round(bottom - panel.value(each) / most * _PANEL, 1),
        )
        for each in moments
    ]
    return [*parts, f'<path d="{_stairs(points)}"/>']


def _stairs(points: Sequence[tuple[float, float]]) -> str:
    """Return a path from the left to each point in turn, level but for steps at them."""
    levels = [(y, [x for x, _ in same]) for y, same in groupby(points, key=lambda point: point[1])]
    steps = [f"V{y}H{along[-1]}" for y, along in levels[1:]]
    return f"M{_LEFT},{levels[0][0]}H{levels[0][1][-1]}" + "".join(steps)


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """Return a time since the beginning, such as ``1:05:00`` or ``4:30``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
