"""The acts of persons on a system's services, running or not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from oyez.inspection.form import utc_time
from oyez.inspection.reach import Gap, ask_stores
from oyez.project import Project
from oyez.runtime.audit import Act, list_acts


class Acts(msgspec.Struct, frozen=True, kw_only=True):
    """Acts on several services."""

    acts: tuple[tuple[str, Act], ...]
    """Each with its service, the newest first."""
    more: bool
    """Whether some were left out."""
    gaps: tuple[Gap, ...]
    """Stores that could not be read."""


async def list_audit(project: Project, services: Iterable[str], *, limit: int = 100) -> Acts:
    """Return the newest acts on these services, at most ``limit``.

    A service that never ran has none.
    """
    gaps: list[Gap] = []
    answers = await ask_stores(
        project, services, lambda store: list_acts(store, limit=limit + 1), gaps
    )
    acts = [(name, act) for name, found in answers for act in found]
    acts.sort(key=lambda each: (-each[1].time, each[0], -each[1].id))
    return Acts(acts=tuple(acts[:limit]), more=len(acts) > limit, gaps=tuple(gaps))


def as_value(service: str, act: Act) -> dict[str, Any]:
    """Return an act as a value for JSON."""
    return {"service": service, **msgspec.structs.asdict(act), "time": utc_time(act.time)}
