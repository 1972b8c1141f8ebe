"""The brokers of a system in reach, and the gaps of an inspection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, TypeVar

import msgspec

from oyez.errors import ConfigurationError, NotCreated, OyezError
from oyez.ports import Broker, Store
from oyez.project import Project
from oyez.service import Service

T = TypeVar("T")

Part = Literal["broker", "store", "service", "bridge", "stream"]
Cause = Literal["configuration", "not-created", "unreachable", "failed"]


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the system that could not be inspected. ``str`` returns it as one line."""

    part: Part
    name: str
    cause: Cause
    """``unreachable`` may pass by itself; ``failed`` is any other error of that part."""
    effect: str
    """The missing information."""
    reason: str
    """The error's text."""

    def __str__(self) -> str:
        return f"{self.effect}: {self.reason}"

    @classmethod
    def of(cls, part: Part, name: str, error: OyezError, effect: str) -> Gap:
        """Return the gap of an error."""
        cause: Cause = "unreachable" if error.transient else "failed"
        if isinstance(error, ConfigurationError):
            cause = "configuration"
        elif isinstance(error, NotCreated):
            cause = "not-created"
        return cls(part=part, name=name, cause=cause, effect=effect, reason=str(error))


def imported(
    project: Project, names: Iterable[str], unknown: str
) -> tuple[dict[str, Service], list[Gap]]:
    """Import services, and return a gap for each that could not be.

    ``unknown`` is the end of its effect, as in "NAME can't be imported, so …".
    """
    services, failed = project.services(*names)
    gaps = [
        Gap(
            part="service",
            name=name,
            cause="failed",
            effect=f"{name} can't be imported{unknown}",
            reason=reason,
        )
        for name, reason in failed.items()
    ]
    return services, gaps


class Reach:
    """The open brokers of a system, and gaps for those out of reach."""

    def __init__(self, project: Project) -> None:
        self.brokers: dict[str, Broker] = {}
        """The brokers by site, in the order of `Project.brokers`."""
        self.gaps: list[Gap] = []
        self._project = project

    async def ask(self, ask: Callable[[str, Broker], Awaitable[T]]) -> dict[str, T]:
        """Call ``ask`` for each broker; return the results by site.

        A broker for which it raises an OyezError becomes a gap and is left out from then on.
        """
        answers: dict[str, T] = {}
        for site, broker in list(self.brokers.items()):
            try:
                answers[site] = await ask(site, broker)
            except OyezError as error:
                del self.brokers[site]
                self.miss(site, error)
        return answers

    def miss(self, site: str, error: OyezError) -> None:
        """Leave out a broker, and add its gap."""
        name = self._project.brokers[site].name
        self.gaps.append(Gap.of("broker", name, error, f"broker {name} is left out"))


@asynccontextmanager
async def reached(project: Project) -> AsyncIterator[Reach]:
    """Open every broker of the system in reach, until the block ends."""
    async with AsyncExitStack() as stack:
        reach = Reach(project)
        for site in project.brokers:
            try:
                reach.brokers[site] = await stack.enter_async_context(project.opened(site))
            except OyezError as error:
                reach.miss(site, error)
        yield reach


async def ask_stores(
    project: Project,
    services: Iterable[str],
    ask: Callable[[Store], Awaitable[T]],
    gaps: list[Gap],
) -> list[tuple[str, T]]:
    """Return what each service's store answers, by service.

    A service that never ran has no answer, and one whose store fails has a gap in ``gaps``.
    """
    found: list[tuple[str, T]] = []
    for name in services:
        try:
            async with project.opened_store(name) as store:
                found.append((name, await ask(store)))
        except NotCreated:
            continue
        except OyezError as error:
            gaps.append(Gap.of("store", name, error, name))
    return found
