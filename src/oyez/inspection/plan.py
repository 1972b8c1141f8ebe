"""What a saga declares, as a value: for drawings that are made where its class is not at hand."""

from __future__ import annotations

from graphlib import TopologicalSorter

import msgspec

from oyez.saga import SagaType


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a saga."""

    name: str
    behind: tuple[str, ...]
    """The steps that have to be done before."""
    within: float
    """Seconds for its answer."""
    pivot: bool
    undo: str = ""
    """The name of what undoes it; empty where nothing does."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of a saga and its ends. Raises ValueError for steps in no possible order."""

    name: str
    steps: tuple[PlannedStep, ...]
    """In the order of their declaration."""
    ends: tuple[str, ...]
    complete: str
    """The end after all steps are done; empty without steps."""
    undone: str
    """The end after all was undone; empty where there is none."""

    def __post_init__(self) -> None:
        """Check what may have come from another process."""
        known = {step.name for step in self.steps}
        for step in self.steps:
            if not known.issuperset(step.behind):
                raise ValueError(f"{self.name}.{step.name} comes after a step that is not there")
        for end in filter(None, (self.complete, self.undone)):
            if end not in self.ends:
                raise ValueError(f"{self.name} has no end {end}")
        self.depths()

    def depths(self) -> dict[str, int]:
        """Return how many steps have to be done one after the other up to each one."""
        behind = {step.name: step.behind for step in self.steps}
        found: dict[str, int] = {}
        for name in TopologicalSorter(behind).static_order():
            found[name] = 1 + max((found[each] for each in behind[name]), default=0)
        return found


def plan_of(kind: SagaType) -> Plan:
    """Return what a saga declares."""
    return Plan(
        name=kind.name,
        steps=tuple(
            PlannedStep(
                name=name,
                behind=step.behind,
                within=step.within,
                pivot=step.pivot,
                undo="" if step.undone_by is None else step.undone_by.name,
            )
            for name, step in kind.steps.items()
        ),
        ends=tuple(kind.ends),
        complete=kind.complete,
        undone=kind.undone,
    )
