"""A flow of production again: what began it comes anew, and the services of today react to it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from oyez.inspection.exported import Exported, read
from oyez.simulation.sim import Sim
from oyez.simulation.stage import Scenario

SAME = "the flow goes as it went"
"""What some seed must reach: the events that the services announce are those of the file."""


def replaying(file: Path) -> Scenario:
    """Return a scenario that publishes the events of a file which no other one of it has caused.

    The others are left out, since the services announce them anew. Raises ConfigurationError
    naming the line.
    """
    events = read(file)
    ids = {each.headers.get("id") for each in events}
    first = [each for each in events if each.headers.get("causationid") not in ids]
    went = _counted(events)

    async def scenario(sim: Sim) -> None:
        @sim.sometimes(SAME)
        def same() -> bool:
            found = {each.id: (each.type, each.key) for each in sim.history()}
            return Counter(found.values()) == went

        since = 0.0
        for each in first:
            await sim.sleep(max(0.0, each.at - since))
            since = max(since, each.at)
            sim.append(each.record())

    return scenario


def _counted(events: list[Exported]) -> Counter[tuple[str, str | None]]:
    """Return how often each type of event is there for each key."""
    return Counter(
        (each.headers.get("type", ""), each.headers.get("partitionkey", each.key))
        for each in events
    )
