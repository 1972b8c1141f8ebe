"""Which brokers of a system answer, and what of the system can't be looked at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from oyez.errors import ConfigurationError, OyezError
from oyez.project import NotCreated, Project
from oyez.service import Service

Part = Literal["broker", "store", "service", "bridge", "stream"]
Cause = Literal["configuration", "not-created", "unreachable", "failed"]


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the system that could not be looked at. ``str`` gives it as one line."""

    part: Part
    name: str
    cause: Cause
    """``unreachable`` may pass by itself; ``failed`` is any other error of that part."""
    effect: str
    """What is missing for it."""
    reason: str
    """The error's text."""

    def __str__(self) -> str:
        return f"{self.effect}: {self.reason}"

    @classmethod
    def of(cls, part: Part, name: str, error: OyezError, effect: str) -> Gap:
        """Return the gap that an error leaves."""
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

    ``unknown`` is what is missing then, as in "NAME can't be imported, so …".
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
