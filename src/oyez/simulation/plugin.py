"""The pytest test of a scenario."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from oyez.service import Service
from oyez.simulation.stage import Plan, Scenario
from oyez.simulation.world import FAULTS


def simulate(
    *services: Service,
    seeds: int = 200,
    system: str | None = None,
    root: Path | None = None,
    provide: Mapping[type, object] | None = None,
    replicas: int = 2,
    faults: Sequence[str] = FAULTS,
) -> Callable[[Scenario], Callable[[], None]]:
    """Make a test of a scenario, which runs it with many seeds and fails with a story.

    ::

        @simulate(seeds=200)
        async def test_orders_survive(sim):
            await sim.publish(OrderPlaced(order_id="1"), service="shop")

    Without ``services`` they are those of the project that the test belongs to, whose ``oyez.toml``
    stands in its folder or the nearest one above it.
    """

    def decorate(scenario: Scenario) -> Callable[[], None]:
        @functools.wraps(scenario)
        def test() -> None:
            from oyez.simulation.project import project_at
            from oyez.simulation.search import search
            from oyez.simulation.story import text

            __tracebackhide__ = True
            file = Path(scenario.__code__.co_filename)
            if services:
                plan = Plan(
                    services=services,
                    scenario=scenario,
                    system=system or "test",
                    root=root or file.parent,
                )
            else:
                plan = project_at(file).plan(scenario)
            plan.provide = {**plan.provide, **(provide or {})}
            plan.replicas, plan.faults = replicas, faults
            found = search(plan, range(seeds))
            if found.shrunk is not None:
                seed = found.shrunk.seed
                raise AssertionError(text(found.shrunk, f"oyez simulate --seed {seed}"))
            if found.unreached:
                raise AssertionError(
                    f"in {found.seeds} seeds never reached: {', '.join(found.unreached)}"
                )

        del test.__wrapped__  # or pytest asks for a fixture `sim`
        return test

    return decorate
