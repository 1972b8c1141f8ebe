"""``oyez run SERVICE``: one service in the foreground, the production entry point."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial

import click

from oyez.cli.project import Project, run_async
from oyez.config import ServiceSettings
from oyez.listening import HttpServer, address_of, bind, stop_signals
from oyez.observe.logs import configure, log_signal
from oyez.observe.metrics import Metrics
from oyez.runtime.admin import admin
from oyez.runtime.http import with_origin
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals


@click.command("run")
@click.argument("service")
def command(service: str) -> None:
    """Run one service in the foreground.

    SIGTERM or Ctrl-C drains it: what is in flight is finished and committed, its partitions are
    handed over, then it exits with 0.
    """
    project = Project.open()
    configure(project.config.system.log)
    # The loop hands work to the threads that write files, and takes it back, thousands of times a
    # second; with Python's usual 5 ms it would often wait that long for its turn.
    sys.setswitchinterval(0.0005)
    run_async(_run(project, service))


async def _run(project: Project, name: str) -> None:
    config = project.config
    settings = project.settings(name)
    service = project.service(name)
    signals, metrics = Signals(), Metrics()
    signals.listen(log_signal)
    signals.listen(metrics.count)
    process = ServiceProcess(
        service,
        ProcessSettings(
            system=config.system.name,
            partitions=config.system.partitions,
            lease=settings.lease,
            grace=settings.grace,
            root=config.root,
        ),
        broker=project.broker(),
        store=project.store(name),
        ambient=project.ambient,
        signals=signals,
    )
    servers, http_at, admin_at = _servers(project, settings, process, metrics)
    stopped = asyncio.Event()
    with stop_signals(stopped.set):
        await process.start(http=http_at, admin=admin_at)
        try:
            for server in servers:
                await server.start()
            await stopped.wait()
        finally:
            process.stop_soon()
            # First no new requests, then no new events; the admin port tells of it to the end.
            loop = asyncio.get_running_loop()
            end = loop.time() + settings.grace
            await asyncio.gather(*(server.stop() for server in servers[1:]))
            await process.drain(max(1.0, end - loop.time()))
            await servers[0].stop()


def _servers(
    project: Project, settings: ServiceSettings, process: ServiceProcess, metrics: Metrics
) -> tuple[list[HttpServer], str, str]:
    name = settings.name
    make = partial(HttpServer, grace=settings.grace)
    refuse = partial(project.config.error, f"services.{name}.admin")
    listener = bind(settings.admin.host, settings.admin.port, refuse)
    app = admin(process, token=project.token(), metrics=metrics.render)
    servers = [make(app, listener, lifespan="off")]
    http_at = ""
    if process.service.http is not None and settings.http is not None:
        # Replicas share the address. Under `oyez dev` the supervisor has checked that it is free.
        shared = settings.replicas > 1 or "OYEZ_DEV" in os.environ
        refuse = partial(project.config.error, f"services.{name}.http")
        http = bind(settings.http.host, settings.http.port, refuse, shared=shared)
        servers.append(make(with_origin(process.service.http), http))
        http_at = address_of(http)
    return servers, http_at, address_of(listener)
