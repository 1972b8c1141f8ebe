"""The checks of `oyez doctor`: the requirements of a system, with the remedy for each."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import apsw
import httpx
import msgspec

from oyez import tables
from oyez.config import Config, Listen
from oyez.errors import ConfigurationError, NotCreated, OyezError
from oyez.gateway import store as gateway_store
from oyez.http_client import Client
from oyez.inspection import history
from oyez.inspection.form import span, utc_time
from oyez.inspection.lag import ServiceLag, measure
from oyez.inspection.lint import lint
from oyez.inspection.lint.live import look
from oyez.listening import bind
from oyez.ports import Broker, Position, Store
from oyez.project import Project
from oyez.runtime.migrations import read_migrations
from oyez.service import Service
from oyez.sqlite import OLDEST_SQLITE, refuse_network_file_system
from oyez.tables import INBOX_RETENTION

AHEAD = 5.0
"""Seconds by which the newest event may be ahead of this machine's clock."""
BORN = 1_700_000_000.0
"""A time (November 2023) before which a clock must be wrong."""
REACH = 2.0
"""Seconds that the program of a bridged service has to take a connection."""
NEWEST = 64
"""The limit of partitions whose newest record is read."""


class CheckResult(msgspec.Struct, frozen=True):
    """The result of one check."""

    check: str
    """The name of the check."""
    level: Literal["ok", "warning", "problem"]
    text: str
    remedy: str = ""


async def examine(project: Project, service: str = "") -> tuple[CheckResult, ...]:
    """Return the results of all checks, or only of those that one service depends on.

    Nothing is created or changed. For one service, the code of the others need not be there, so
    what is between services is not checked. Raises ConfigurationError for one that does not exist.
    """
    if service:
        project.settings(service)
    return tuple([finding async for finding in _all(project, service)])


def unreadable(error: ConfigurationError) -> CheckResult:
    """Return the result for a project that can't be opened."""
    return CheckResult("configuration", "problem", str(error), "correct that line")


def sound(findings: Iterable[CheckResult]) -> bool:
    """Return whether none of them is a problem."""
    return all(each.level != "problem" for each in findings)


def as_value(findings: Iterable[CheckResult]) -> dict[str, Any]:
    """Return the results as a value for JSON."""
    listed = [msgspec.structs.asdict(each) for each in findings]
    return {"ok": sound(findings), "findings": listed}


async def _all(project: Project, only: str) -> AsyncIterator[CheckResult]:
    config = project.config
    examined = [only] if only else list(config.services)
    names = ", ".join(config.services) or "none"
    yield CheckResult("configuration", "ok", f"{config.path}; services: {names}")
    services, failed = project.services(*examined)
    for name, reason in failed.items():
        yield CheckResult(
            f"service {name}", "problem", reason, "correct its code, or services.*.app"
        )
    for name, service in services.items():
        yield _service(name, service)
    for name in examined:
        if config.services[name].url is not None:
            yield await _program(config, name, config.services[name].url or "")
    yield _sqlite()
    for folder in _folders(project, only, examined):
        yield _folder(folder)
    for secret in _secrets(project, only):
        yield _secret(secret)
    if not only:
        async for finding in _topology(project, services):
            yield finding
    yield _clock(project.ambient.now())
    yield _windows(config)
    running: set[str] = set()
    async for finding in _broker_and_stores(project, only, examined, services, running):
        yield finding
    for finding in _ports(config, examined, running):
        yield finding
    if config.gateway is not None and not only:
        if config.gateway.uses_store:
            yield await _gateway_store(project)
        ours = await _is_gateway(config.gateway.listen)
        yield _port(config, "gateway.listen", config.gateway.listen, ours)


async def _topology(project: Project, services: dict[str, Service]) -> AsyncIterator[CheckResult]:
    standing, _ = await look(project, services)  # what is out of reach is told of elsewhere
    for fault in lint(project, services, standing):
        level: Literal["warning", "problem"] = "problem" if fault.level == "error" else "warning"
        yield CheckResult(f"topology {fault.code}", level, fault.text, fault.remedy)


async def _program(config: Config, name: str, url: str) -> CheckResult:
    """Check that the program of a service takes connections."""
    shown = url.partition("?")[0]  # what follows may be secret
    try:
        async with asyncio.timeout(REACH):
            if url.startswith("unix:"):
                _, writer = await asyncio.open_unix_connection(config.file(url.split(":")[1]))
            else:
                parts = urlsplit(url)
                port = parts.port or {"https": 443, "http": 80}[parts.scheme]
                _, writer = await asyncio.open_connection(parts.hostname, port)
        writer.close()
    except (OSError, TimeoutError) as error:
        problem = f"takes no connection at {shown}: {error or 'no answer in time'}"
        attempts = config.services[name].bridge.attempts
        remedy = f"start it: an event becomes a dead letter after {attempts} attempts"
        return CheckResult(f"program {name}", "warning", problem, remedy)
    return CheckResult(f"program {name}", "ok", f"takes connections at {shown}")


# -- without opening anything ----------------------------------------------------------------------


def _service(name: str, service: Service) -> CheckResult:
    provided = {Service, *(provider.provides for provider in service.providers)}
    for handler in service.handlers:
        for wanted in handler.layout:
            if isinstance(wanted, type) and wanted not in provided:
                return CheckResult(
                    f"service {name}",
                    "problem",
                    f"{handler.name} takes {wanted.__qualname__}, which nothing provides",
                    "add a @service.provides function that returns it",
                )
    return CheckResult(f"service {name}", "ok", f"{len(service.handlers)} handlers")


def _sqlite() -> CheckResult:
    version = apsw.sqlite_lib_version()
    if apsw.SQLITE_VERSION_NUMBER < OLDEST_SQLITE:
        return CheckResult(
            "sqlite",
            "problem",
            f"{version} can corrupt a file that several processes write",
            "install a newer apsw",
        )
    return CheckResult("sqlite", "ok", version)


def _folders(project: Project, only: str, examined: Iterable[str]) -> list[Path]:
    gateway = project.config.gateway
    files = [*map(project.store_file, examined)]
    if not only or project.settings(only).broker is None:
        files.insert(0, project.broker_file())
    folders = [project.config.file(project.config.system.data)]
    if gateway is not None and gateway.uses_store and not only:
        files.append(gateway_store.place(project.config))
    folders += [file.parent for file in files if file is not None]
    return list(dict.fromkeys(folders))


def _folder(folder: Path) -> CheckResult:
    check = f"folder {folder}"
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        if not there.is_dir():
            return CheckResult(check, "problem", f"{there} is not a folder", "remove or rename it")
        if not os.access(there, os.W_OK | os.X_OK):
            return CheckResult(
                check,
                "problem",
                f"{there} can't be written by user {os.getuid()}",
                "change its owner or mode, or set another folder in oyez.toml",
            )
        refuse_network_file_system(there)
    except OSError as error:
        return CheckResult(check, "problem", f"{there}: {error.strerror}", "make it readable")
    except OyezError as error:
        return CheckResult(check, "problem", str(error), "move it")
    return CheckResult(check, "ok", "writable, local" if there == folder else "not created yet")


def _secrets(project: Project, only: str) -> list[Path]:
    config = project.config
    data = config.file(config.system.data)
    if only:
        return [data / "token"]
    found = [data / "token", data / "gateway.secret", data / "gateway.key"]
    if config.gateway is not None and config.gateway.keys is not None:
        found.append(config.file(config.gateway.keys))
    return found


def _secret(file: Path) -> CheckResult:
    check = f"secret {file}"
    try:
        mode = file.stat().st_mode & 0o777
    except FileNotFoundError:
        return CheckResult(check, "ok", "not created yet")
    except OSError as error:
        return CheckResult(check, "problem", str(error.strerror), "make it readable for its owner")
    if mode & 0o077:
        remedy = f"chmod 600 {file}, and replace what others may have read"
        return CheckResult(check, "problem", f"others can read it (mode {mode:03o})", remedy)
    return CheckResult(check, "ok", f"mode {mode:03o}")


def _clock(now: float) -> CheckResult:
    if now < BORN or time.get_clock_info("time").monotonic:
        return CheckResult("clock", "problem", f"it shows {utc_time(now)}", "set it, by NTP")
    return CheckResult("clock", "ok", str(utc_time(now)))


def _windows(config: Config) -> CheckResult:
    """Check that the inbox is kept as long as events, so that duplicates are detected."""
    kept, known = config.system.retention_days, INBOX_RETENTION / 86_400
    if kept > known:
        return CheckResult(
            "retention",
            "warning",
            f"events are kept for {kept:g} days, but services detect duplicates for {known:g}",
            "don't replay or redrive what is older, or lower system.retention_days",
        )
    return CheckResult("retention", "ok", f"{kept:g} days; duplicates are detected for {known:g}")


# -- broker and stores -----------------------------------------------------------------------------


async def _broker_and_stores(
    project: Project,
    only: str,
    examined: Iterable[str],
    services: dict[str, Service],
    running: set[str],
) -> AsyncIterator[CheckResult]:
    """``running`` is filled with the services that have a living process."""
    reached = False
    try:
        async with project.opened_broker(only) as broker:
            reached = True
            async for finding in _setup("broker", broker):
                yield finding
            yield await _newest(project, broker)
    except NotCreated:
        yield CheckResult(
            "broker", "ok", "not created yet: it is made by the first service that runs"
        )
    except OyezError as error:
        yield CheckResult("broker", "problem", str(error), "correct that, then look again")
    for name in examined:
        # For one service alone, its broker was examined above.
        own = not only and project.settings(name).broker is not None
        async for finding in _store(project, name, services.get(name), reached, own, running):
            yield finding


async def _setup(what: str, adapter: Broker | Store) -> AsyncIterator[CheckResult]:
    """Yield the faults of a server's configuration that lose, duplicate or delay events."""
    check = f"{what} setup"
    found = await adapter.inspect()
    for each in found:
        yield CheckResult(check, "problem" if each.grave else "warning", each.what, each.remedy)
    if not found:
        survives = adapter.capabilities.durability
        yield CheckResult(check, "ok", f"acknowledged records survive: {survives}")


async def _newest(project: Project, broker: Broker) -> CheckResult:
    # A broker may have thousands of streams of others, and tell their ends one after the other.
    own = f"{project.config.system.name}."
    mine = sorted(each for each in await history.streams(broker) if each.startswith(own))
    if not broker.capabilities.history:
        return CheckResult("broker", "ok", f"{len(mine)} streams; it keeps no history")
    places = await history.ends(broker, mine)

    async def last(place: history.Place, end: Position) -> float:
        async with aclosing(history.read(broker, place, end, end - 1)) as batches:
            async for batch in batches:
                return batch.records[-1].time
        return 0.0

    used = [pair for pair in places.items() if pair[1]][:NEWEST]
    newest = max(await asyncio.gather(*(last(*pair) for pair in used)), default=0.0)
    streams = len({stream for stream, _ in places})
    ahead = newest - project.ambient.now()
    if ahead > AHEAD:
        return CheckResult(
            "broker",
            "problem",
            f"the newest event is {span(ahead)} ahead of this machine's clock",
            "set the clocks, by NTP: retries, leases and retention depend on them",
        )
    when = f"the newest event is of {utc_time(newest)}" if newest else "no event yet"
    return CheckResult("broker", "ok", f"{streams} streams, {len(places)} partitions; {when}")


async def _store(
    project: Project,
    name: str,
    service: Service | None,
    reached: bool,
    own: bool,
    running: set[str],
) -> AsyncIterator[CheckResult]:
    """``reached``: its broker is in reach, so lag is known; ``own``: it has one to be examined."""
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(project.opened_store(name))
            async for finding in _setup(f"store {name}", store):
                yield finding
            if service is not None:
                yield await _migrations(project, service, store)
            broker: Broker | None = None
            if reached or own:
                broker = await stack.enter_async_context(project.opened_broker(name))
            if broker is not None and own:
                async for finding in _setup(f"broker of {name}", broker):
                    yield finding
            system, now = project.config.system.name, project.ambient.now()
            lag = await measure(system, name, service, broker, store, now)
            if broker is not None:
                yield await _gaps(name, broker, lag)
        except NotCreated:
            yield CheckResult(f"store {name}", "ok", "not created yet: the service has not run")
            return
        except OyezError as error:
            remedy = "correct that, then look again"
            yield CheckResult(f"store {name}", "problem", str(error), remedy)
            return
    if lag.replicas:
        running.add(name)
    for finding in _standing(project, lag):
        yield finding


async def _gateway_store(project: Project) -> CheckResult:
    check = "gateway store"
    try:
        return CheckResult(check, "ok", await gateway_store.reach(project.config, project.ambient))
    except OyezError as error:
        remedy = "correct gateway.store, or start its server: keyed requests are refused until then"
        return CheckResult(check, "problem", str(error), remedy)


async def _gaps(name: str, broker: Broker, lag: ServiceLag) -> CheckResult:
    """Check whether retention deleted events before the service handled them."""
    check = f"history {name}"
    if not broker.capabilities.history:
        return CheckResult(check, "ok", "the broker keeps none")
    starts = {
        (stream, partition): start
        for stream in {each.stream for each in lag.partitions}
        for partition, start in enumerate(await broker.starts(stream))
    }
    lost = [
        f"{each.stream}[{each.partition}]"
        for each in lag.partitions
        if 0 < each.position < starts.get((each.stream, each.partition), 0)
    ]
    if lost:
        return CheckResult(
            check,
            "problem",
            f"events were deleted before {name} handled them, in {', '.join(lost)}",
            "raise system.retention_days above the longest time that a service may be down",
        )
    return CheckResult(check, "ok", "nothing was deleted before it was handled")


async def _migrations(project: Project, service: Service, store: Store) -> CheckResult:
    check = f"migrations {service.name}"
    applied = {row["name"]: row["digest"] for row in await store.fetch(tables.MIGRATIONS, {})}
    try:
        scripts = dict(read_migrations(service, project.config.root))
    except ConfigurationError as error:
        return CheckResult(check, "problem", str(error), "correct service.migrations or the file")
    changed = [
        name
        for name, sql in scripts.items()
        if name in applied and applied[name] != sha256(sql.encode()).hexdigest()
    ]
    if changed:
        return CheckResult(
            check,
            "problem",
            f"{', '.join(changed)} has run and was changed since",
            "restore it and put the change into a new file with the next number",
        )
    pending = [name for name in scripts if name not in applied]
    gone = [name for name in applied if name not in scripts]
    if gone:
        return CheckResult(
            check, "warning", f"{', '.join(gone)} has run and is missing", "restore it"
        )
    if pending:
        return CheckResult(
            check,
            "warning",
            f"{len(applied)} applied; pending: {', '.join(pending)}",
            f"oyez migrate {service.name}, or the next start of the service, runs them",
        )
    return CheckResult(check, "ok", f"{len(applied)} applied")


def _standing(project: Project, lag: ServiceLag) -> list[CheckResult]:
    name = lag.service
    found = []
    if lag.dead:
        found.append(
            CheckResult(
                f"dead letters {name}",
                "warning",
                f"{lag.dead} dead letters",
                f"oyez dead list {name}",
            )
        )
    else:
        found.append(CheckResult(f"dead letters {name}", "ok", "none"))
    if lag.oldest is None:
        text = "nothing waits" if lag.oldest_known else "unknown: the broker or the code is missing"
        found.append(CheckResult(f"lag {name}", "ok" if lag.oldest_known else "warning", text))
        return found
    age = project.ambient.now() - lag.oldest
    kept = project.config.system.retention_days * 86_400
    text = f"the oldest unhandled event is {span(max(age, 0.0))} old"
    remedy = f"run {name} (oyez run {name}), or raise system.retention_days ({kept / 86_400:g})"
    if age > kept:
        found.append(CheckResult(f"lag {name}", "problem", f"{text}, beyond the retention", remedy))
    elif age > kept / 2:
        found.append(
            CheckResult(f"lag {name}", "warning", f"{text}, over half the retention", remedy)
        )
    else:
        found.append(CheckResult(f"lag {name}", "ok", text))
    return found


# -- ports -----------------------------------------------------------------------------------------


def _ports(config: Config, examined: Iterable[str], running: set[str]) -> Iterator[CheckResult]:
    for name in examined:
        settings = config.services[name]
        for key, listen in (("http", settings.http), ("admin", settings.admin)):
            if listen is not None and listen.port:
                yield _port(config, f"services.{name}.{key}", listen, name in running)


def _port(config: Config, key: str, listen: Listen, ours: bool) -> CheckResult:
    try:
        bind(listen.host, listen.port, partial(config.error, key)).close()
    except ConfigurationError as error:
        if ours:
            return CheckResult(f"port {listen}", "ok", f"held by this system ({key})")
        return CheckResult(
            f"port {listen}",
            "problem",
            str(error),
            "find its process: ss -ltnp",
        )
    return CheckResult(f"port {listen}", "ok", f"free ({key})")


async def _is_gateway(listen: Listen) -> bool:
    try:
        async with Client(timeout=2.0, trust_env=False) as client:
            answer = await client.get(f"http://{listen}/livez")
    except httpx.HTTPError:
        return False
    return answer.status_code in (200, 503)
