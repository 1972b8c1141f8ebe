"""What is run, and what a run shows to the scenario and to the checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from oyez.ports import Record
from oyez.service import Service
from oyez.simulation.broker import KINDS, Log
from oyez.simulation.loop import SimLoop
from oyez.simulation.outside import Calls
from oyez.simulation.store import Database
from oyez.simulation.world import FAULTS, Node, SimAmbient, World

T = TypeVar("T")

Scenario = Callable[[Any], Awaitable[None]]
"""What is done in a run; its argument is a `Sim`."""


class Plan(msgspec.Struct, kw_only=True):
    """What is run, the same for each seed."""

    services: Sequence[Service]
    scenario: Scenario
    system: str = "test"
    root: Path = Path()
    provide: Mapping[type, object] = {}
    """Values for the services' own providers, by type; an `outside` makes one for each run."""
    replicas: int = 2
    faults: Sequence[str] = FAULTS
    brokers: Sequence[str] = tuple(KINDS)
    """The kinds of brokers that it is run on, one for each seed."""
    leave: Sequence[str] = ()
    """Modules whose variables are no part of a service, such as the scenario's own."""


class Stage(Protocol):
    """A run, as the scenario and the checks see it."""

    plan: Plan
    seed: int
    loop: SimLoop
    world: World
    ambient: SimAmbient
    log: Log
    databases: dict[str, Database]
    """By the name of the service."""
    calls: Calls
    fakes: dict[type, Any]
    """What stands for the outside, by the type that it is provided for."""

    def publish(self, record: Record) -> None:
        """Append a record that comes from outside."""
        ...

    def serving(self, service: str) -> Node | None:
        """Return one of the replicas that answer requests; None if there is none."""
        ...

    async def within(
        self, node: Node, work: Coroutine[Any, Any, T], lost: Callable[[], Exception]
    ) -> T:
        """Return the result of work on a node; raise ``lost`` if that dies meanwhile."""
        ...
