"""The story of a failure, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from oyez.simulation.run import Result
from oyez.simulation.world import Told

LINES = 40
"""The limit of lines of a story."""
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-([0-9a-f]{12})")


def rows(story: Sequence[Told], most: int = LINES) -> list[tuple[str, str, str, bool]]:
    """Return time, node, what happened and whether it was a fault, for each line of a story.

    What is long ago before the first fault, and what is beyond the limit, is left out.
    """
    told = list(story)
    faults = [index for index, each in enumerate(told) if each.fault]
    first = max(0, (faults[0] if faults else 0) - most // 4)
    shown = told[first : first + most]
    found = [(f"{each.time:.3f}", each.node, _short(each.what), each.fault) for each in shown]
    left = len(told) - len(shown)
    if left:
        found.append(("", "", f"and {left} lines more: oyez simulate --json has all", False))
    return found


def text(result: Result, command: str) -> str:
    """Return a failure as text: what does not hold, its story, and how to see it again."""
    lines = [f"seed {result.seed}:"]
    lines += [f"  {each}" for each in result.failures]
    lines.append("")
    table = rows(result.story)
    wide = max((len(node) for _, node, _, _ in table), default=0)
    for time, node, what, fault in table:
        lines.append(f"  {time:>9}  {node:<{wide}}  {'! ' if fault else '  '}{what}".rstrip())
    lines += ["", f"again: {command}"]
    return "\n".join(lines)


def _short(what: str) -> str:
    found = _ID.sub(lambda match: match[1][-8:], what)
    return found if len(found) <= 160 else found[:157] + "..."
