"""The invocation of commands: the event loop, ``--json``, and warnings of gaps."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, NoReturn, TypeVar

import click

from oyez.cli.printing import warn
from oyez.errors import ConfigurationError, OyezError
from oyez.inspection.reach import Gap

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
"""The option of every listing command."""


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop, or asyncio's loop without it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


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
