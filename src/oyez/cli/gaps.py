"""Warnings of gaps: the parts of a system that a command could not inspect."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from oyez.cli.printing import warn
from oyez.errors import ConfigurationError, OyezError
from oyez.inspection.reach import Gap


def heed(gaps: Iterable[Gap], *, answered: bool) -> None:
    """Print a warning for each gap.

    If no broker ``answered``, raises the reason of the first one instead. Raises
    ConfigurationError for a store whose configuration is impossible.
    """
    refused = None
    for gap in gaps:
        if gap.part != "broker" and gap.cause == "configuration":
            refuse(gap)
        if not answered and refused is None and gap.part == "broker":
            refused = gap
        else:
            warn(str(gap))
    if refused is not None:
        refuse(refused)


def refuse(gap: Gap) -> NoReturn:
    """Raise the reason of a gap."""
    kind = ConfigurationError if gap.cause == "configuration" else OyezError
    raise kind(gap.reason)
