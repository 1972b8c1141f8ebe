"""The console's side: asks the admin ports of a system's processes, all at once and bounded.

An answer is a value or a gap, never an empty value for a process that did not answer, and a process
that hangs, breaks off or answers with something else takes nothing from the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Generic, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec

from oyez import tables
from oyez.config import Listen
from oyez.console.answers import (
    ActPage,
    Asked,
    Done,
    Explore,
    GroupPage,
    Hear,
    InstancePage,
    InstanceShown,
    Job,
    LetterPage,
    LetterShown,
    Look,
    Looked,
    Many,
    ParkedPage,
    Place,
    Problem,
    Replica,
    ServiceShown,
    SettingsShown,
    Standings,
    Streams,
    TakePart,
    Timings,
    Trouble,
)
from oyez.console.refusals import in_words
from oyez.errors import OyezError
from oyez.http_client import Client
from oyez.inspection.explore import Arrivals, Page, Shown
from oyez.inspection.lag import ServiceLag
from oyez.inspection.lint.contracts import Contracts
from oyez.inspection.reach import Gap
from oyez.inspection.sagas import Place as SagaPlace
from oyez.inspection.witness import Heard, Known, Part, Positions, Recalled
from oyez.ports import Store
from oyez.project import Project

T = TypeVar("T")

DEADLINE = 2.0
"""Seconds for one whole answer."""
LARGEST = 4_194_304
"""Bytes of an answer; a larger one is refused unread."""
_AT_ONCE = 32
_REMEMBERED = 5.0
"""Seconds for which the addresses of a service's replicas are used."""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}  # noqa: S104


class Answer(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What one service, or one of its replicas, answered: ``value`` or else ``gap``."""

    service: str
    at: str
    """The address that was asked; empty where none is known."""
    value: T | None = None
    gap: Gap | None = None


class Unanswered(Exception):
    """One service did not answer, or refused. ``status`` is the page's, ``str`` its reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class System:
    """The processes of a project, by their admin ports."""

    def __init__(self, project: Project) -> None:
        self.name = project.config.system.name
        self.services = (*project.config.services, *project.config.bridges)
        """The names of all services, and of the bridges, which are processes like them."""
        self.bridges = project.config.bridges
        """The bridges, by name; an address in them may hold a password."""
        self.project = project
        self.external = project.config.system.external
        """The event types that come from outside, or that are only handled there."""
        self._known: dict[str, tuple[float, list[str]]] = {}
        self._holders: dict[str, str] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._client = Client(
            headers={"Authorization": f"Bearer {project.token()}", "Accept-Encoding": "identity"},
            timeout=DEADLINE,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def replicas(self) -> list[Answer[Replica]]:
        """Ask every replica of every service."""
        found = await asyncio.gather(*(self.replicas_of(name) for name in self.services))
        return [answer for answers in found for answer in answers]

    async def lags(self) -> list[Answer[ServiceLag]]:
        """Ask each service for its lag, once."""
        return await self._each("/oyez/lag", ServiceLag)

    async def troubles(self) -> list[Answer[Trouble]]:
        """Ask each service what it needs a person for, once."""
        return await self._each("/oyez/trouble", Trouble)

    async def groups(
        self, after: Mapping[str, tuple[int, str] | None], wanted: Mapping[str, str], limit: int
    ) -> list[Answer[GroupPage]]:
        """Ask services for the groups of the dead letters that are wanted.

        Of each service, what comes after the number of letters and the name of a group.
        """
        read = _decoder(GroupPage)

        def path(place: tuple[int, str] | None) -> str:
            at = {} if place is None else {"letters": place[0], "after": place[1]}
            return f"/oyez/groups?{urlencode({**wanted, **at, 'limit': limit})}"

        asked = (self._first(name, path(place), read) for name, place in after.items())
        return list(await asyncio.gather(*asked))

    async def letters(
        self, service: str, wanted: Mapping[str, str], *, every: bool, after: int, limit: int
    ) -> LetterPage:
        """Return the dead letters of a service that are wanted. Raises Unanswered."""
        query = urlencode({**wanted, "every": f"{every:d}", "after": after, "limit": limit})
        return await self._one(service, f"/oyez/letters?{query}", LetterPage)

    async def letter(self, service: str, letter: int) -> LetterShown:
        """Return one dead letter. Raises Unanswered."""
        return await self._one(service, f"/oyez/letters/{letter}", LetterShown)

    async def payload(self, service: str, letter: int) -> bytes:
        """Return the payload of a dead letter. Raises Unanswered."""
        answer = await self._first(service, f"/oyez/letters/{letter}/data", _bytes)
        return _value(answer)

    async def sagas(
        self, services: Iterable[str] = (), *, saga: str = ""
    ) -> list[Answer[Standings]]:
        """Ask services, by default all, where the instances of their sagas stand."""
        return await self._each(f"/oyez/sagas?{urlencode({'saga': saga})}", Standings, services)

    async def instances(
        self, service: str, saga: str, *, status: str, after: SagaPlace | None, limit: int
    ) -> Answer[InstancePage]:
        """Ask a service for instances of a saga after a place, by status or all that go on."""
        asked: dict[str, object] = {"status": status, "limit": limit}
        if after is not None:
            asked |= {"at": after.status.value, "changed": after.changed, "key": after.key}
        path = f"/oyez/sagas/{quote(saga, safe='')}/instances?{urlencode(asked)}"
        return await self._first(service, path, _decoder(InstancePage))

    async def instance(
        self, service: str, saga: str, key: str, *, before: int | None
    ) -> InstanceShown:
        """Return an instance, with its transitions before a number. Raises Unanswered."""
        asked = urlencode({"key": key, "before": "" if before is None else before})
        path = f"/oyez/sagas/{quote(saga, safe='')}/instance?{asked}"
        return await self._one(service, path, InstanceShown)

    async def acts(
        self, before: Mapping[str, int], *, target: str = "", limit: int
    ) -> list[Answer[ActPage]]:
        """Ask services for the acts on them below an id each, and on one target if it is named."""
        read = _decoder(ActPage)
        path = f"/oyez/audit?{urlencode({'target': target, 'limit': limit})}"
        asked = (self._first(name, f"{path}&before={id_}", read) for name, id_ in before.items())
        return list(await asyncio.gather(*asked))

    async def look(self, service: str, look: Look) -> Looked:
        """Return what a redrive would do. Raises Unanswered."""
        return await self._one(service, "/oyez/letters/look", Looked, look)

    async def start(self, service: str, many: Many) -> Job:
        """Begin a job in a process of the service. Raises Unanswered."""
        return await self._act(service, "/oyez/jobs", many, Job)

    async def job(self, service: str, job: str) -> Job:
        """Return a job, of whichever process has it. Raises Unanswered."""
        return await self._one(service, f"/oyez/jobs/{job}", Job)

    async def stop(self, service: str, job: str, asked: Asked) -> Job:
        """Stop a job, in whichever process has it. Raises Unanswered."""
        return await self._one(service, f"/oyez/jobs/{job}/stop", Job, asked)

    @property
    def brokers(self) -> dict[str, list[str]]:
        """The short names of the brokers, each with the services that are on it."""
        project = self.project
        names = {site: known.name for site, known in project.brokers.items()}
        found: dict[str, list[str]] = {}
        for service in project.config.services:
            name = names[project.site(project.broker_url(service))]
            found.setdefault(name, []).append(service)
        return found

    async def streams(self) -> dict[str, Answer[Streams]]:
        """Ask each broker for its streams, by its name."""
        names = list(self.brokers)
        found = await asyncio.gather(*(self._there(n, "/oyez/streams", Streams) for n in names))
        return dict(zip(names, found, strict=True))

    async def events(self, broker: str, asked: Explore) -> Page:
        """Return a page of the events of a broker's stream. Raises Unanswered."""
        return _value(await self._there(broker, f"/oyez/events?{_query(asked)}", Page))

    async def arrivals(self, broker: str, asked: Explore) -> Answer[Arrivals]:
        """Ask for what has arrived in a broker's stream."""
        return await self._there(broker, f"/oyez/events/arrivals?{_query(asked)}", Arrivals)

    async def event(self, broker: str, place: Place) -> Shown:
        """Return one event of a broker's stream. Raises Unanswered."""
        return _value(await self._there(broker, f"/oyez/events/one?{_query(place)}", Shown))

    async def data(self, broker: str, place: Place) -> AsyncGenerator[bytes]:
        """Return the payload of one event, in parts; the first has arrived. Raises Unanswered."""
        path = f"/oyez/events/data?{_query(place)}"
        parts = self._parts(broker, path)
        first = await anext(parts)

        async def all_parts() -> AsyncGenerator[bytes]:
            async with aclosing(parts):
                yield first
                async for part in parts:
                    yield part

        return all_parts()

    async def contracts(self) -> list[Answer[Contracts]]:
        """Ask each service for its contracts."""
        return await self._each("/oyez/contracts", Contracts, self.project.config.services)

    async def _there(self, broker: str, path: str, kind: type[T]) -> Answer[T]:
        """Return the answer of any service on a broker, first of the one that answered last."""
        services = self.brokers.get(broker, [])
        last = self._holders.get(broker, "")
        answer: Answer[T] = Answer(service="", at="", gap=_gap(broker, "no service is on it"))
        end = asyncio.get_running_loop().time() + 2 * DEADLINE
        for service in sorted(services, key=lambda name: name != last):
            answer = await self._first(service, path, _decoder(kind))
            if answer.gap is None:
                self._holders[broker] = service
            if answer.gap is None or answer.gap.cause == "failed":
                break  # another would refuse it as well
            if asyncio.get_running_loop().time() > end:
                break
        return answer

    async def _parts(self, broker: str, path: str) -> AsyncGenerator[bytes]:
        answer = await self._there(broker, "/oyez/streams", Streams)
        _value(answer)
        try:
            async with self._client.stream("GET", f"http://{answer.at}{path}") as content:
                if content.status_code != 200:
                    told = _told(content.status_code, (await content.aread())[:4_096])
                    raise Unanswered(404, told)
                yield b""
                async for part in content.aiter_raw(65_536):
                    yield part
        except httpx.HTTPError as error:
            raise Unanswered(503, f"no connection ({type(error).__name__})") from error

    async def act(self, service: str, path: str, body: msgspec.Struct) -> None:
        """Have a service carry out an act at ``/oyez/…``. Raises Unanswered when it did not."""
        await self._act(service, path, body, Done)

    async def _act(self, service: str, path: str, body: msgspec.Struct, kind: type[T]) -> T:
        addresses, gap = await self._addresses(service)
        if not addresses:
            raise Unanswered(503, str(gap))
        # An act is asked for once: what became of one without an answer is not known.
        return _value(await self._ask(service, addresses[0], path, _decoder(kind), body))

    async def replicas_of(self, service: str) -> list[Answer[Replica]]:
        """Ask every replica of a service."""
        return await self._all(service, "/oyez/replica", Replica)

    async def timings_of(self, service: str) -> list[Answer[Timings]]:
        """Ask every replica of a service how its handlers did in the last minutes."""
        return await self._all(service, "/oyez/timings", Timings)

    async def lag_of(self, service: str) -> Answer[ServiceLag]:
        """Ask a service for its lag."""
        return await self._first(service, "/oyez/lag", _decoder(ServiceLag))

    async def parked_of(self, service: str, *, after: int, limit: int) -> Answer[ParkedPage]:
        """Ask a service for its parked events after a row."""
        path = f"/oyez/parked?after={after}&limit={limit}"
        return await self._first(service, path, _decoder(ParkedPage))

    async def service(self, service: str) -> Answer[ServiceShown]:
        """Ask a service what else its store tells."""
        return await self._first(service, "/oyez/service", _decoder(ServiceShown))

    async def settings_of(self, service: str) -> Answer[SettingsShown]:
        """Ask a service for its settings in effect."""
        return await self._first(service, "/oyez/settings", _decoder(SettingsShown))

    async def known(self, identity: str) -> list[Answer[Known]]:
        """Ask each service what its store has of an identity."""
        path = f"/oyez/find?id={quote(identity, safe='')}"
        return await self._each(path, Known, self.project.config.services)

    async def heard(self, service: str, asked: Hear) -> Answer[Heard]:
        """Ask a service, or a bridge, what the history of the broker that it reads has."""
        return await self._first(service, "/oyez/history", _decoder(Heard), asked)

    async def positions(self, names: Iterable[str]) -> list[Answer[Positions]]:
        """Ask services or bridges how far they have read."""
        path, read = "/oyez/positions", _positions
        return list(await asyncio.gather(*(self._first(name, path, read) for name in names)))

    async def recalled(self, correlation: str) -> list[Answer[Recalled]]:
        """Ask each service which events of a journey its store has."""
        path = f"/oyez/journey?id={quote(correlation, safe='')}"
        return await self._each(path, Recalled, self.project.config.services)

    async def part(self, service: str, asked: TakePart) -> Answer[Part]:
        """Ask a service for its part in a journey."""
        return await self._first(service, "/oyez/journey", _decoder(Part), asked)

    async def _all(self, service: str, path: str, kind: type[T]) -> list[Answer[T]]:
        addresses, gap = await self._addresses(service)
        if not addresses:
            return [Answer(service=service, at="", gap=gap)]
        read = _decoder(kind)
        asks = (self._ask(service, each, path, read) for each in addresses)
        return list(await asyncio.gather(*asks))

    async def _each(
        self, path: str, kind: type[T], services: Iterable[str] = ()
    ) -> list[Answer[T]]:
        read = _decoder(kind)
        names = list(services) or self.services
        return list(await asyncio.gather(*(self._first(name, path, read) for name in names)))

    async def _one(
        self, service: str, path: str, kind: type[T], body: msgspec.Struct | None = None
    ) -> T:
        return _value(await self._first(service, path, _decoder(kind), body))

    async def _first(
        self,
        service: str,
        path: str,
        read: Callable[[bytes], T],
        body: msgspec.Struct | None = None,
    ) -> Answer[T]:
        """Return the answer of the first replica that has one; ``body`` must ask, not change."""
        addresses, gap = await self._addresses(service)
        answer: Answer[T] = Answer(service=service, at="", gap=gap)
        for address in addresses:
            answer = await self._ask(service, address, path, read, body)
            if answer.value is not None:
                break
        return answer

    async def _ask(
        self,
        service: str,
        address: str,
        path: str,
        read: Callable[[bytes], T],
        body: msgspec.Struct | None = None,
    ) -> Answer[T]:
        cause = "unreachable"
        try:
            async with self._turns, asyncio.timeout(DEADLINE):
                status, content = await self._exchange(f"http://{address}{path}", body)
            if status == 200:
                return Answer(service=service, at=address, value=read(content))
            cause, reason = "failed", _told(status, content)
        except TimeoutError:
            reason = f"no answer within {DEADLINE:g} s"
        except httpx.HTTPError as error:
            self._known.pop(service, None)
            reason = f"no connection ({type(error).__name__})"
        except (msgspec.MsgspecError, ValueError) as error:
            cause, reason = "failed", f"an answer that can't be read: {error}"
        except _TooLarge:
            cause, reason = "failed", f"an answer of more than {LARGEST} bytes"
        gap = Gap(
            part="service",
            name=service,
            cause="failed" if cause == "failed" else "unreachable",
            effect=f"{service} at {address}",
            reason=reason,
        )
        return Answer(service=service, at=address, gap=gap)

    async def _exchange(self, url: str, body: msgspec.Struct | None) -> tuple[int, bytes]:
        content = None if body is None else msgspec.json.encode(body)
        method = "GET" if body is None else "POST"
        async with self._client.stream(method, url, content=content) as answer:
            found = bytearray()
            async for part in answer.aiter_raw(65_536):
                found += part
                if len(found) > LARGEST:
                    raise _TooLarge
            return answer.status_code, bytes(found)

    async def _addresses(self, service: str) -> tuple[list[str], Gap | None]:
        """Return where the replicas of a service are asked, or why that is not known."""
        config = self.project.config
        settings = config.services.get(service) or config.bridges[service]
        if settings.admin.port:
            address = getattr(settings, "address", None)
            host = address.host if address is not None else settings.admin.host
            return [_reached(str(Listen(host, settings.admin.port)))], None
        now = asyncio.get_running_loop().time()
        known = self._known.get(service)
        if known is not None and now - known[0] < _REMEMBERED:
            return known[1], None
        try:
            async with asyncio.timeout(DEADLINE), self._store(service) as store:
                rows = await store.fetch(tables.REPLICAS, {})
        except OyezError as error:
            return [], Gap.of("service", service, error, service)
        except TimeoutError:
            return [], _gap(service, f"its store did not answer within {DEADLINE:g} s")
        time = self.project.ambient.now()
        living = sorted(row["note"] for row in rows if row["until"] > time and row["note"])
        if not living:
            return [], _gap(service, "no replica of it is running")
        addresses = [_reached(note) for note in living]
        self._known[service] = now, addresses
        return addresses, None

    def _store(self, service: str) -> AbstractAsyncContextManager[Store]:
        if service in self.project.config.bridges:
            return self.project.opened_bridge_store(service)
        return self.project.opened_store(service)


class _TooLarge(Exception):
    pass


def _query(asked: msgspec.Struct) -> str:
    given = {name: value for name, value in msgspec.to_builtins(asked).items() if value is not None}
    return urlencode(given, errors="replace")


def _decoder(kind: type[T]) -> Callable[[bytes], T]:
    return msgspec.json.Decoder(kind).decode


_positions: Callable[[bytes], Positions] = msgspec.json.Decoder(Positions).decode


def _bytes(content: bytes) -> bytes:
    return content


def _value(answer: Answer[T]) -> T:
    if answer.value is None:
        refused = answer.gap is not None and answer.gap.cause == "failed"
        raise Unanswered(409 if refused else 503, str(answer.gap))
    return answer.value


def _told(status: int, content: bytes) -> str:
    """Return the reason in a problem; the status alone for any other answer."""
    try:
        problem = msgspec.json.decode(content, type=Problem)
    except msgspec.MsgspecError:
        return f"it answered {status}"
    return in_words(problem.code, problem.detail) or problem.title


def _gap(service: str, reason: str) -> Gap:
    return Gap(part="service", name=service, cause="unreachable", effect=service, reason=reason)


def _reached(address: str) -> str:
    """Return an address at which a process that listens everywhere is reached."""
    host, _, port = address.rpartition(":")
    return f"{_EVERYWHERE.get(host, host)}:{port}"
