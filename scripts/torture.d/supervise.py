"""`oyez dev` for a campaign: what dies is started again at once, however often it has died before.

Elsewhere the supervisor waits longer from death to death, so as not to start for nothing what can't
live. Here it would be waiting most of the time, and nobody would be there to be killed. What it
starts is forked by a `nursery.Nursery`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from nursery import Nursery

from oyez import adapters
from oyez.cli import dev, main
from oyez.project import Project


class _Asyncio:
    """asyncio as `oyez.cli.dev` finds it, with another way to start processes."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def create_subprocess_exec(self, *command: str, **options: Any) -> Any:
        """Fork ``oyez``; start what is anything else as ever."""
        if command[1:3] != ("-m", "oyez"):
            return await asyncio.create_subprocess_exec(*command, **options)
        folder, environment = str(options["cwd"]), options["env"]
        return await self._nursery.start(command, folder, environment, options["limit"])


if __name__ == "__main__":
    scheme = Project.open().config.system.broker.partition(":")[0]
    broker = adapters.load(adapters.BROKERS, scheme)
    dev._RESTART = (0.0,)
    dev.asyncio = _Asyncio(Nursery(f"{broker.__module__}.broker"))  # type: ignore[assignment]
    sys.argv[0] = "oyez"
    main()
