"""``oyez run SERVICE``: one service in the foreground, the production entry point."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import click
import msgspec
from starlette.types import ASGIApp

from oyez.cli.invocation import run_async
from oyez.config import BridgeSettings, Listen, ServiceSettings
from oyez.listening import HttpServer, bind, bind_unix, local, stop_signals, websocket
from oyez.logger import configure
from oyez.observe.logs import log_signal
from oyez.observe.metrics import LAG_EVERY, Metrics
from oyez.observe.traced import traced
from oyez.project import Project
from oyez.runtime.admin import admin
from oyez.runtime.http import with_origin
from oyez.runtime.identity import identities
from oyez.runtime.interpreter import settle, tune
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.scaling.rule import Limits
from oyez.signals import Signals
from oyez.sites import kind
from oyez.turning import Turning

if TYPE_CHECKING:
    from oyez.inspection.deployed import Saying

_LARGEST_MESSAGE = 1_048_576
"""Bytes of a message that the HTTP side of a service takes over a WebSocket."""


@click.command("run")
@click.argument("service")
@click.option(
    "--no-migrate",
    is_flag=True,
    help="Change no tables: refuse to start if `oyez migrate` has something to do.",
)
def command(service: str, no_migrate: bool) -> None:
    """Run one service in the foreground.

    SIGTERM or Ctrl-C drains it: it finishes and commits the work in flight, releases its
    partitions and exits with 0.
    """
    signal.signal(signal.SIGTERM, leave)
    project = Project.open()
    prepare(project)
    run_async(run(project, service, migrate=not no_migrate))


def leave(number: int, frame: object) -> NoReturn:
    """End with 0 when told to before anything has begun."""
    raise SystemExit(0)


def prepare(project: Project) -> None:
    """Prepare a long-running process of a project."""
    configure(project.config.system.log)
    tune()


async def run(project: Project, name: str, *, migrate: bool) -> None:
    """Run a service until it is told to stop."""
    settings = project.settings(name)
    service = project.service(name)
    signals, metrics = observed(name, [handler.name for handler in service.handlers])
    limits = process_settings(project, settings, settings.broker)
    limits = msgspec.structs.replace(limits, migrate=migrate)
    with traced(
        project.ambient, system=limits.system, service=name, broker=limits.broker
    ) as tracer:
        process = ServiceProcess(
            service,
            limits,
            broker=project.broker(name),
            store=project.store(name),
            ambient=project.ambient,
            signals=signals,
            tracer=tracer,
        )
        servers = _servers(project, process, settings, metrics)
        delay = settings.drain_delay
        await serve(process, servers, settings.grace, metrics, says=True, delay=delay)


def _servers(
    project: Project, process: ServiceProcess, settings: ServiceSettings, metrics: Metrics
) -> list[HttpServer]:
    """Return the servers of a service: the admin port, and its HTTP side if it has one."""
    service, name = process.service, settings.name
    key = f"services.{name}"
    servers = [admin_server(project, process, metrics, key, settings.admin, settings.grace)]
    if service.http is not None and settings.http is not None:
        # Replicas share the address. Under `oyez dev` the supervisor has checked that it is free.
        shared = settings.replicas.most > 1 or "OYEZ_DEV" in os.environ
        refuse = partial(project.config.error, f"{key}.http")
        listener = bind(settings.http.host, settings.http.port, refuse, shared=shared)
        proven = identities(project.config, name, project.ambient)
        app = with_origin(service.http, process.announcer, proven)
        speaks = {"ws": websocket, "ws_max_size": _LARGEST_MESSAGE}
        servers.append(HttpServer(app, listener, grace=settings.grace, **speaks))
    if service.http is not None and settings.bridge.socket is not None:
        refuse = partial(project.config.error, f"{key}.bridge.socket")
        listener = bind_unix(project.config.file(settings.bridge.socket), refuse)
        app = local(with_origin(service.http, process.announcer))
        servers.append(HttpServer(app, listener, grace=settings.grace))
    return servers


def observed(service: str, handlers: Iterable[str] = ()) -> tuple[Signals, Metrics]:
    """Return signals with the log and the metrics of a service as listeners."""
    signals, metrics = Signals(), Metrics(service=service, handlers=handlers)
    signals.listen(log_signal)
    signals.listen(metrics.count)
    return signals, metrics


def process_settings(
    project: Project, settings: ServiceSettings | BridgeSettings, broker: str | None
) -> ProcessSettings:
    """Return the settings of a process; ``broker`` is the URL that it reads from."""
    return ProcessSettings(
        system=project.config.system.name,
        partitions=project.config.system.partitions,
        lease=settings.lease,
        grace=settings.grace,
        root=project.config.root,
        broker=kind(broker or project.config.system.broker),
        scaling=settings.limits if isinstance(settings, ServiceSettings) else Limits(),
    )


def admin_server(
    project: Project,
    process: ServiceProcess,
    metrics: Metrics,
    key: str,
    address: Listen,
    grace: float,
) -> HttpServer:
    """Return the server of the admin port; ``key`` is its table in oyez.toml, for errors."""
    metrics.read("oyez_ready", lambda: float(not process.readiness()))
    app = admin(
        process,
        token=project.token(),
        metrics=metrics.render,
        details=partial(_details, project, process, key),
        scale_token=project.scale_token(),
    )
    listener = bind(address.host, address.port, partial(project.config.error, f"{key}.admin"))
    return HttpServer(app, listener, grace=grace, lifespan="off")


def _details(project: Project, process: ServiceProcess, key: str) -> ASGIApp:
    # Imported when somebody looks: a service's start and its memory at rest do without.
    from oyez.console.api import api
    from oyez.inspection.installation import effective

    return api(process, partial(effective, project.config, key))


async def serve(
    process: ServiceProcess,
    servers: Sequence[HttpServer],
    grace: float,
    metrics: Metrics,
    *,
    says: bool = False,
    delay: float = 0.0,
) -> None:
    """Run until SIGTERM or Ctrl-C, then drain. The first server is the admin port.

    With ``says`` the process says its contract to the broker, as what is deployed. For ``delay``
    seconds before the drain it takes new requests still, while it is not ready: who sends them
    learns of the end of a process later than the process.
    """
    stopped = asyncio.Event()
    turning = Turning(LAG_EVERY, metrics.turned)
    saying: Saying | None = None
    admin_at, *http_at = (server.address for server in servers)
    with stop_signals(stopped.set):
        if not await _started(process, stopped, ", ".join(http_at), admin_at):
            return
        process.watchdog.start()
        turning.start()
        try:
            for server in servers:
                await server.start()
            settle()
            if says:
                saying = _saying(process)
            await stopped.wait()
            process.leave()
            if delay:
                await asyncio.sleep(delay)
        finally:
            process.watchdog.stop()
            turning.stop()
            process.stop_soon()
            if saying is not None:
                await saying.stop()
            # First no new requests, then no new events; the admin port serves until the end.
            loop = asyncio.get_running_loop()
            end = loop.time() + grace
            await asyncio.gather(*(server.stop() for server in servers[1:]))
            await process.drain(max(1.0, end - loop.time()))
            await servers[0].stop()


def _saying(process: ServiceProcess) -> Saying:
    # Imported when the service is ready: its start does without.
    from oyez.inspection.deployed import Saying

    saying = Saying(process)
    saying.start()
    return saying


async def _started(
    process: ServiceProcess, stopped: asyncio.Event, http: str, admin_at: str
) -> bool:
    """Start the process, unless a signal to stop comes first: it may wait for a locked file."""
    start = asyncio.create_task(process.start(http=http, admin=admin_at), name="start")
    stop = asyncio.create_task(stopped.wait(), name="stop")
    await asyncio.wait([start, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if start.done():
        await start
        return True
    start.cancel()
    await asyncio.wait([start])
    return False
