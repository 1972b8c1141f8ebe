"""``oyez bridge``: to another broker, or over HTTP to a program in another language."""

from __future__ import annotations

import signal

import click

from oyez import stores
from oyez.cli.invocation import run_async
from oyez.cli.run import admin_server, leave, observed, prepare, process_settings, run, serve
from oyez.config import BridgeSettings
from oyez.errors import BrokerError, BrokerRefused, ConfigurationError
from oyez.observe.traced import traced
from oyez.ports import Broker
from oyez.project import Project
from oyez.runtime.bridge import Carrier
from oyez.runtime.process import ServiceProcess
from oyez.service import Service
from oyez.sites import kind


@click.command("bridge")
@click.argument("name")
@click.argument("service", required=False)
def command(name: str, service: str | None) -> None:
    """Copy streams from one broker to another: [bridges.NAME] of oyez.toml.

    Every record is copied in order and at least once, with its id, so that services drop
    duplicates. Several processes share the partitions. SIGTERM or Ctrl-C drains it.

    `oyez bridge http [SERVICE]` posts events to the program of a service in any language instead,
    and publishes what it answers: [services.SERVICE] with a url. SERVICE can be left out if there
    is one such service.
    """
    signal.signal(signal.SIGTERM, leave)
    project = Project.open()
    if name == "http" and (service is not None or name not in project.config.bridges):
        chosen = _bridged(project, service)
        prepare(project)
        run_async(run(project, chosen, migrate=True))
        return
    if service is not None:
        raise click.UsageError(f"a bridge between brokers has one name, found {service!r} besides")
    settings = project.config.bridges.get(name)
    if settings is None:
        names = ", ".join(sorted(project.config.bridges)) or "none"
        raise ConfigurationError(
            f"{project.config.path}: there is no bridge {name!r}; there are: {names}"
        )
    prepare(project)
    run_async(_run(project, settings))


def _bridged(project: Project, service: str | None) -> str:
    """Return the service to run. Raises ConfigurationError unless it has a url."""
    known = [each.name for each in project.config.services.values() if each.url is not None]
    if service is None and len(known) == 1:
        return known[0]
    if service is None or project.settings(service).url is None:
        found = "there is none" if not known else f"there are: {', '.join(sorted(known))}"
        wanted = "name a service with a url" if service is None else f"{service} has no url"
        raise ConfigurationError(f"{project.config.path}: {wanted}; {found}")
    return service


async def _run(project: Project, settings: BridgeSettings) -> None:
    service = Service(f"bridge-{settings.name}")
    group = f"{project.config.system.name}.{service.name}"
    target = project.connect(settings.target)
    signals, metrics = observed(service.name)
    limits = process_settings(project, settings, settings.source)
    to = kind(settings.target)
    with traced(project.ambient, system=limits.system, service=service.name, broker=to) as tracer:
        process = ServiceProcess(
            service,
            limits,
            broker=project.connect(settings.source, group),
            store=stores.connect(settings.store, project.ambient, root=project.config.root),
            ambient=project.ambient,
            signals=signals,
            reads=settings.carries,
            consumer=lambda lane: Carrier(lane, target, process.reports, project.ambient),
            tracer=tracer,
        )
        key = f"bridges.{settings.name}"
        admin = admin_server(project, process, metrics, key, settings.admin, settings.grace)
        try:
            await _open(target, process)
            await serve(process, [admin], settings.grace, metrics)
        finally:
            await target.close()


async def _open(target: Broker, process: ServiceProcess) -> None:
    try:
        await target.open()
    except BrokerError as error:
        if not error.transient:
            raise BrokerRefused(f"target: {error}") from error
        process.reports.trouble("target", error)  # it reconnects by itself, and lanes wait for it
