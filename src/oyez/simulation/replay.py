"""Replays a flow of production: its events come again, and the services of today react to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from oyez.errors import ConfigurationError
from oyez.ports import Record
from oyez.simulation.run import Scenario
from oyez.simulation.sim import Sim

MOST_BYTES = 64 * 1024 * 1024
"""The limit of a file."""


class Exported(msgspec.Struct, frozen=True):
    """One event of a flow, a line of the file: when (seconds since its beginning), and what."""

    at: float
    stream: str
    headers: dict[str, str]
    key: str | None = None
    data: Any = None


def replaying(file: Path) -> Scenario:
    """Return a scenario that publishes the events of a file which began the flow.

    Those that another event caused are left out: the services announce them anew. Raises
    ConfigurationError naming the line.
    """
    if file.stat().st_size > MOST_BYTES:
        raise ConfigurationError(f"{file}: expected at most {MOST_BYTES} bytes")
    events = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            events.append(msgspec.json.decode(line, type=Exported))
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"{file}:{number}: {error}: expected what `oyez flow ID --export FILE` writes"
            ) from error
    ids = {each.headers.get("id") for each in events}
    roots = [each for each in events if each.headers.get("causationid") not in ids]
    if not roots:
        raise ConfigurationError(f"{file}: expected an event that no other one caused")

    async def scenario(sim: Sim) -> None:
        before = 0.0
        for each in roots:
            await sim.sleep(max(0.0, each.at - before))
            before = max(before, each.at)
            sim.append(
                Record(
                    stream=each.stream,
                    key=each.key,
                    headers=each.headers,
                    data=msgspec.json.encode(each.data),
                )
            )

    return scenario
