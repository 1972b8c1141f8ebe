"""The topology: publishers and handlers of event types, from the services' code alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from oyez.event import EventType
from oyez.inspection.reach import Gap, imported
from oyez.project import Project
from oyez.service import Service
from oyez.timers import MADE_HERE


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """An event type with its publishers and handlers."""

    type: str
    publishers: tuple[str, ...] = ()
    """The services that publish it."""
    handlers: tuple[tuple[str, str], ...] = ()
    """Pairs of service and handler name."""
    published_as: tuple[EventType, ...] = ()
    """The publishers' classes of the type."""
    handled_as: tuple[EventType, ...] = ()
    """The handlers' classes of the type."""


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """The event types of a system."""

    system: str
    services: tuple[str, ...]
    """All services of the project."""
    flows: tuple[Flow, ...]
    """The event types in alphabetical order."""
    gaps: tuple[Gap, ...]
    """Services that could not be imported and are left out."""

    @property
    def imported(self) -> list[str]:
        """The imported services."""
        lost = {gap.name for gap in self.gaps}
        return [name for name in self.services if name not in lost]

    @property
    def unhandled(self) -> list[str]:
        """The types without a handler."""
        return [flow.type for flow in self.flows if not flow.handlers]

    @property
    def unpublished(self) -> list[str]:
        """The types without a known publisher."""
        return [flow.type for flow in self.flows if not flow.publishers]


def survey(project: Project) -> Topology:
    """Return the topology of a system."""
    services, gaps = imported(project, (), " and is left out")
    return Topology(
        system=project.config.system.name,
        services=tuple(project.config.services),
        flows=tuple(flows(services.values()).values()),
        gaps=tuple(gaps),
    )


def flows(services: Iterable[Service]) -> dict[str, Flow]:
    """Return every event type of these services, by name, in alphabetical order."""
    published: dict[str, list[tuple[str, EventType]]] = {}
    handled: dict[str, list[tuple[str, str, EventType]]] = {}
    for service in services:
        for kind in service.publishes:
            published.setdefault(kind.name, []).append((service.name, kind))
        for handler in service.subscriptions:
            for kind in handler.events:
                if kind.name in MADE_HERE:
                    continue
                handled.setdefault(kind.name, []).append((service.name, handler.name, kind))
    return {
        name: Flow(
            type=name,
            publishers=tuple(service for service, _ in published.get(name, ())),
            handlers=tuple((service, handler) for service, handler, _ in handled.get(name, ())),
            published_as=tuple(kind for _, kind in published.get(name, ())),
            handled_as=tuple(kind for _, _, kind in handled.get(name, ())),
        )
        for name in sorted({*published, *handled})
    }


def as_value(topology: Topology) -> dict[str, Any]:
    """Return the topology as a value for JSON."""
    return {
        "services": list(topology.services),
        "failed": {gap.name: gap.reason for gap in topology.gaps},
        "types": [
            {
                "type": flow.type,
                "publishers": list(flow.publishers),
                "handlers": [
                    {"service": service, "handler": handler} for service, handler in flow.handlers
                ],
            }
            for flow in topology.flows
        ],
        "unhandled": topology.unhandled,
        "unpublished": topology.unpublished,
    }
