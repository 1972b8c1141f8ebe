"""What a scenario is given: the system that runs, and what must hold of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx

from oyez.contract import decode
from oyez.envelope import Envelope, format_time, open_record
from oyez.event import describe
from oyez.identity import HEADER, NAME_HEADER, Signer, new_key
from oyez.ports import Record, Row
from oyez.principal import Principal
from oyez.runtime.http import with_origin
from oyez.runtime.identity import Identities
from oyez.simulation.checks import Check
from oyez.simulation.stage import Stage
from oyez.transaction import Announcer, Origin

E = TypeVar("E")
C = TypeVar("C", bound=Check)


class Sim:
    """A simulated system, as a scenario sees it. Times are virtual seconds."""

    def __init__(self, run: Stage) -> None:
        self.random = random.Random(run.seed)  # noqa: S311 - repeatable on purpose
        """Random numbers of this run, for what a scenario does."""
        self.reached: set[str] = set()
        self.sometimes_checks: dict[str, Check] = {}
        self.always_checks: list[Check] = []
        self.rest_checks: list[Check] = []
        self.eventual_checks: list[tuple[float, Check]] = []
        self.allowed: set[str] = set()
        self.patience = 7_200.0
        """The seconds after the last fault within which everything must be settled."""
        self._run = run
        self._signer: Signer | None = None
        self._announcers: dict[str, Announcer] = {}

    # -- what a scenario does ----------------------------------------------------------------------

    async def publish(
        self, event: object, *, service: str = "outside", key: str | None = None
    ) -> str:
        """Publish an event as if by ``service``, which nothing goes wrong with; return its id."""
        run = self._run
        announcer = self._announcers.get(service)
        if announcer is None:
            announcer = Announcer(run.plan.system, service, run.ambient)
            self._announcers[service] = announcer
        row = announcer.announce(event, Origin(), format_time(run.ambient.now()), 0.0, key)
        stream = f"{run.plan.system}.{service}"
        run.publish(Record(stream=stream, key=row.key, headers=row.headers, data=row.data))
        return row.headers["id"]

    def append(self, record: Record) -> None:
        """Put a record onto the broker as it is, even an invalid one."""
        self._run.publish(record)

    def http(self, service: str, principal: Principal | None = None) -> httpx.AsyncClient:
        """Return a client of a service's HTTP side, without a socket; each request may fail.

        It raises ``httpx.TransportError`` when no replica answers, or the one that was asked dies.
        ``principal`` is who sends the requests, as if a gateway had authenticated them.
        """
        run = self._run
        if self._signer is None:
            self._signer = Signer(run.plan.system, new_key())
        signer = self._signer

        def signed(request: httpx.Request) -> httpx.Request:
            if principal is not None:
                token = signer.sign(principal, service, run.ambient.now())
                request.headers[NAME_HEADER.decode()] = principal.name
                request.headers[HEADER.decode()] = token
            return request

        async def keys() -> bytes:
            return signer.jwks

        class Transport(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                node = run.serving(service)
                if node is None:
                    raise httpx.ConnectError("simulated: no replica answers")
                assert node.process is not None
                proven = Identities(run.plan.system, service, node.ambient, keys)
                app = with_origin(node.process.service.http, node.process.announcer, proven)
                return await run.within(
                    node,
                    httpx.ASGITransport(app=app).handle_async_request(request),
                    lambda: httpx.ReadError("simulated: the replica died"),
                )

        return httpx.AsyncClient(transport=Transport(), base_url=f"http://{service}", auth=signed)

    async def fetch(self, service: str, sql: str, /, **parameters: Any) -> list[Row]:
        """Query what is committed in a service's store; nothing goes wrong with it."""
        return self._run.databases[service].query(sql, parameters)

    async def sleep(self, seconds: float) -> None:
        """Let virtual seconds pass."""
        await asyncio.sleep(seconds)

    def outside(self, cls: Any) -> Any:
        """Return the fake of this run that is provided for a class, to look into its books."""
        return self._run.fakes[cls]

    def history(self) -> list[Envelope]:
        """Return every event on the broker, in the order of their creation."""
        logs = self._run.log.logs.values()
        records = [record for partitions in logs for log in partitions for record in log]
        return sorted((open_record(r.headers, r.data) for r in records), key=lambda each: each.id)

    def announced(self, cls: type[E]) -> list[E]:
        """Return the events of this type on the broker, each once, in the order of creation."""
        kind = describe(cls)
        found: Mapping[str, Envelope] = {
            each.id: each for each in self.history() if each.type == kind.name
        }
        return [decode(kind, each.data, each.dataschema) for each in found.values()]

    # -- what must hold ----------------------------------------------------------------------------

    def always(self, check: C) -> C:
        """Check this after each commit."""
        self.always_checks.append(check)
        return check

    def at_rest(self, check: C) -> C:
        """Check this when nothing goes wrong any more and all is settled: the books."""
        self.rest_checks.append(check)
        return check

    def eventually(self, *, within: float = 60.0) -> Callable[[C], C]:
        """Check this until it holds, at most so many seconds after the last fault."""

        def add(check: C) -> C:
            self.eventual_checks.append((within, check))
            return check

        return add

    def sometimes(self, name: str) -> Callable[[C], C]:
        """Check that this holds at rest for one seed at least: else it is untested."""

        def add(check: C) -> C:
            self.sometimes_checks[name] = check
            return check

        return add

    def reach(self, name: str) -> None:
        """Note that the interesting case of this name was reached."""
        self.reached.add(name)

    def allow(self, *names: str) -> None:
        """Leave out built-in checks: ``dead``, ``arguments``, ``tasks``, ``order``, ``own commit``,
        or a variable by its full name (``payments.service.CACHE``).
        """
        self.allowed.update(names)
