"""``oyez gateway``: the gateway alone, the keys of its clients, its routes for other proxies."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from oyez.cli.invocation import run_async
from oyez.config import Listen
from oyez.errors import ConfigurationError
from oyez.gateway import Records, serve
from oyez.gateway.keyfile import add_key
from oyez.logger import Logger, configure
from oyez.observe.metrics import LAG_EVERY, Metrics
from oyez.observe.traced import traced
from oyez.project import Project
from oyez.runtime.interpreter import settle, tune
from oyez.turning import Turning

_UNITS = {"m": 60.0, "h": 3_600.0, "d": 86_400.0}
_AGE = re.compile(r"([1-9]\d{0,5})([mhd])")


@click.group("gateway", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Run the gateway alone; SIGTERM or Ctrl-C drains it."""
    if context.invoked_subcommand is None:
        _serve()


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = _AGE.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value}: expected a number and a unit: 30m, 12h or 90d")
    return int(match[1]) * _UNITS[match[2]]


@command.command("key")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, help="A scope of its holder; once for each.")
@click.option("--role", "roles", multiple=True, help="A role of its holder; once for each.")
@click.option("--expires", callback=_seconds, help="After which time it ends, such as 90d.")
def key(name: str, scopes: tuple[str, ...], roles: tuple[str, ...], expires: float | None) -> None:
    """Make an API key and print it, this once: only its digest is kept, in gateway.keys.

    A gateway that runs accepts it within a second or two.
    """
    project = Project.open()
    end = None if expires is None else project.ambient.now() + expires
    click.echo(add_key(project.config, name, scopes=scopes, roles=roles, expires=end))
    click.echo("oyez: it is shown this once, as only its digest is kept", err=True)


@command.command("export")
@click.argument("proxy", type=click.Choice(("nginx", "envoy")))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The file.")
@click.option("--strict", is_flag=True, help="Exit with 1 if anything can't be held there.")
def export_command(proxy: str, output: Path | None, strict: bool) -> None:
    """Write the gateway's routes, limits and headers for nginx or Envoy.

    What the proxy can't hold is refused there: a route whose sender it can't know is not opened.
    Each such thing is a line on standard error, and at the head of the file.
    """
    from oyez.gateway.export import export

    text, missing = export(Project.open().config, proxy)
    if output is None:
        click.echo(text, nl=False)
    else:
        try:
            output.write_text(text)
        except OSError as error:
            raise click.BadParameter(f"{output}: {error.strerror}", param_hint="-o") from None
    for each in missing:
        click.echo(f"oyez: not held by {proxy}: {each}", err=True)
    if strict and missing:
        sys.exit(1)


def _serve() -> None:
    project = Project.open()
    if project.config.gateway is None:
        raise ConfigurationError(f"{project.config.path}: there is no [gateway] table")
    configure(project.config.system.log)
    tune()
    run_async(_run(project))


async def _run(project: Project) -> None:
    metrics = Metrics("gateway", service="gateway")
    turning = Turning(LAG_EVERY, metrics.turned)
    system = project.config.system.name
    with traced(project.ambient, system=system, service="gateway") as tracer:
        turning.start()
        try:
            await serve(
                project.config,
                project.ambient,
                ready=_ready,
                observer=metrics,
                tracer=tracer,
                records=_records(project),
            )
        finally:
            turning.stop()


def _records(project: Project) -> Records | None:
    """Return the records of the brokers where a route needs them, and they can be read again."""
    settings = project.config.gateway
    if settings is None or not any(route.until for route in settings.routes):
        return None
    from oyez.inspection.records import BrokerRecords  # most gateways need none of it

    try:
        return BrokerRecords(project)
    except ConfigurationError as error:
        Logger().warning("until is not held: routes answer as their services do", reason=str(error))
        return None


def _ready(listen: Listen, admin: Listen) -> None:
    settle()
    Logger().info("started", service="gateway", http=str(listen), admin=str(admin))
