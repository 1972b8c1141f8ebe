"""What every part of a running service works with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor

from oyez.ambient import Ambient, backoff
from oyez.errors import OyezError
from oyez.handler import Call, Handler
from oyez.ports import Broker, Changes, Claim, Store
from oyez.runtime.retry import describe_traceback
from oyez.signals import Signals, Trouble
from oyez.transaction import Announcer, UnitOfWork

THREADS = 32
"""Plain ``def`` handlers that run at once, at most."""


class Workbench:
    """The service's compiled handlers and the ports they are served by."""

    def __init__(
        self,
        service: str,
        system: str,
        handlers: tuple[Handler, ...],
        *,
        broker: Broker,
        store: Store,
        ambient: Ambient,
        signals: Signals,
        owner: str,
        threads: Executor | None = None,
        reads: Callable[[str], bool] | None = None,
    ) -> None:
        """``threads`` runs plain ``def`` handlers; by default a pool of ``THREADS``.

        ``reads`` tells by its name whether a stream is read; by default the handlers do.
        """
        self.service = service
        self.system = system
        self.handlers = {handler.name: handler for handler in handlers}
        self.calls: dict[str, Call] = {}
        self.broker = broker
        self.store = store
        self.ambient = ambient
        self.signals = signals
        self.owner = owner
        self.stopping = False
        self.reads = reads or self._handles
        """Whether a stream is read at all."""
        self.announcer = Announcer(system, service, ambient, lambda: broker.capabilities.max_bytes)
        self.threads = threads or ThreadPoolExecutor(
            THREADS, thread_name_prefix=f"{service}-handler"
        )

    def bind(self, provided: Mapping[type, object]) -> None:
        """Put what the service provides into the calls. Raises DeclarationError."""
        self.calls = {name: handler.bind(provided) for name, handler in self.handlers.items()}

    def handlers_of(self, stream: str) -> dict[str, list[Handler]]:
        """The handlers that read the stream, by the type of event that they want."""
        table: dict[str, list[Handler]] = {}
        for handler in self.handlers.values():
            if handler.reads(stream, self.system):
                for kind in handler.events:
                    table.setdefault(kind.name, []).append(handler)
        return table

    def unit(self, claim: Claim | None) -> UnitOfWork:
        """A unit of work that only commits while ``claim`` holds."""
        unit = UnitOfWork(self.store, self.announcer)
        unit.changes.claim = claim
        return unit

    async def leave(self, changes: Changes) -> None:
        """Commit changes that no handler made."""
        changes.time = self.ambient.now()
        await self.store.begin().commit(changes)

    def trouble(self, part: str, error: Exception) -> None:
        """Say that ``part`` met an error and will try again."""
        text = str(error) if isinstance(error, OyezError) else describe_traceback(error)
        self.signals.emit(Trouble(service=self.service, part=part, error=text))

    def _handles(self, stream: str) -> bool:
        return any(handler.reads(stream, self.system) for handler in self.handlers.values())

    async def backoff(self, failures: int) -> None:
        """Wait before the next try, longer after each failure; see `oyez.ambient.backoff`."""
        await self.ambient.sleep(backoff(failures, self.ambient.chance()))


class Bell:
    """Wakes one waiter; rung while nobody waits, it is remembered."""

    def __init__(self, ambient: Ambient) -> None:
        self._ambient = ambient
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake the waiter, now or when it comes."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Return when rung, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with self._ambient.timeout(seconds):
                await self._event.wait()
        self._event.clear()
