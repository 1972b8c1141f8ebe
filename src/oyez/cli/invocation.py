"""How commands run: on an event loop, with ``--json``, with warnings of what is missing."""

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
"""Every listing command takes it."""


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run on the fastest event loop there is."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def heed(gaps: Iterable[Gap], *, answered: bool) -> None:
    """Warn of what could not be looked at.

    Where no broker ``answered``, raises the reason of the first one instead of the warning. Raises
    ConfigurationError for a store that can't be as it is configured.
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
    """Fail because of a gap: raises its reason."""
    kind = ConfigurationError if gap.cause == "configuration" else OyezError
    raise kind(gap.reason)
