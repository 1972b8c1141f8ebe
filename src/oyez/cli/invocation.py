"""How commands run: on an event loop, with ``--json``, on the brokers that answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import Any, NoReturn, TypeVar

import click

from oyez.cli.printing import warn
from oyez.errors import ConfigurationError, OyezError
from oyez.inspection.reach import Gap
from oyez.ports import Broker
from oyez.project import Project

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


@contextlib.asynccontextmanager
async def opened_brokers(project: Project) -> AsyncIterator[dict[str, Broker]]:
    """Every broker of the system by its place, as `Project.brokers`, open until the block ends.

    What can't be opened is left out as in `ask_brokers`.
    """
    async with AsyncExitStack() as stack:

        async def enter(place: str) -> Broker:
            return await stack.enter_async_context(project.opened(place))

        yield await ask_brokers(project, project.brokers, enter)


async def ask_brokers(
    project: Project, places: Iterable[str], ask: Callable[[str], Awaitable[T]]
) -> dict[str, T]:
    """What ``ask`` gives for each of the brokers, by place.

    One for which it fails is left out, and a warning names it; where none is left, the first
    error is raised.
    """
    answers: dict[str, T] = {}
    failed: dict[str, OyezError] = {}
    for place in places:
        try:
            answers[place] = await ask(place)
        except OyezError as error:
            failed[place] = error
    raised = None if answers else next(iter(failed.values()), None)
    for place, reason in failed.items():
        if reason is not raised:
            warn(f"broker {project.brokers[place].name} is left out: {reason}")
    if raised is not None:
        raise raised
    return answers


def heed(gaps: Iterable[Gap], *, answered: bool) -> None:
    """Warn of what could not be looked at.

    Where no broker ``answered``, raises the reason of the first one instead of the warning.
    """
    refused = None
    for gap in gaps:
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
