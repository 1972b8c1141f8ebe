"""``oyez scale``: how many replicas services need, told to autoscalers or planned on paper."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import click

from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import Cell, print_json, print_line, print_table
from oyez.config import Listen, Rate, ServiceSettings
from oyez.errors import ConfigurationError, NotCreated
from oyez.inspection.scale import MeasuredRate, measure_rate
from oyez.project import Project
from oyez.scaling.chart import chart, clock
from oyez.scaling.forecast import LONGEST, Capacity, Forecast, Load, forecast, recorded

_GRACE = 1.0
_QUIET = 60.0
"""Seconds before a burst."""
_DURATION = re.compile(r"([1-9][0-9]{0,5})(s|m|h)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@click.group("scale")
def command() -> None:
    """Tell how many replicas services need, or plan it."""


def _rate(value: str) -> float:
    """Return events a second."""
    try:
        rate = Rate.parse(value)
    except ValueError:
        text = f'expected a rate such as "200/s" or "600/min", found "{value}"'
        raise click.BadParameter(text) from None
    return rate.count / rate.seconds


def _duration(value: str) -> float:
    """Return seconds."""
    match = _DURATION.fullmatch(value)
    if match is None or int(match[1]) * _SECONDS[match[2]] > LONGEST:
        text = f'expected a time such as "90s", "10m" or "2h", 7 days at most, found "{value}"'
        raise click.BadParameter(text)
    return int(match[1]) * _SECONDS[match[2]]


@command.command("plan")
@click.argument("service")
@click.option(
    "--rate", type=_rate, metavar="RATE", help="Events that arrive in a burst, such as 2000/s."
)
@click.option(
    "--burst",
    type=_duration,
    metavar="TIME",
    default="10m",
    help="How long that lasts, such as 10m.",
)
@click.option(
    "--base",
    type=_rate,
    metavar="RATE",
    help="Events that arrive before and after it; by default none.",
)
@click.option(
    "--from",
    "record",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A recorded load instead: lines SECONDS,EVENTS-PER-SECOND.",
)
@click.option(
    "--per-replica",
    type=_rate,
    metavar="RATE",
    help="What a replica handles, if none has measured it.",
)
@click.option(
    "--shared",
    type=_rate,
    metavar="RATE",
    help="What the store or a downstream takes of all replicas.",
)
@click.option("--partitions", type=click.IntRange(1, 4096), help="By default the system's.")
@click.option("--chart", "picture", type=click.Path(path_type=Path), help="Write a chart, as SVG.")
@json_option
def plan(
    service: str,
    rate: float | None,
    burst: float,
    base: float | None,
    record: Path | None,
    per_replica: float | None,
    shared: float | None,
    partitions: int | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Plan the replicas of a service for a load: lag, age and cost, by its measured rate."""
    if (rate is None) == (record is None):
        raise click.UsageError("give either --rate or --from")
    project = Project.open()
    settings = project.settings(service)
    measured = _measured(project, settings.name, per_replica)
    capacity = Capacity(
        rate=measured.rate,
        shared=shared,
        partitions=partitions or project.config.system.partitions,
    )
    load, length = _load(rate, burst, base or 0.0, record)
    limits = settings.limits
    rest = 2 * limits.target + limits.most * limits.cooldown
    found = forecast(load, min(length + rest, LONGEST), capacity, limits)
    assumed = _assumed(settings, measured, capacity)
    if picture is not None:
        try:
            picture.write_text(chart(found, f"{settings.name}: replicas for this load", assumed))
        except OSError as error:
            raise click.ClickException(f"{picture}: {error.strerror}") from error
    if as_json:
        print_json(_as_value(settings.name, found, measured, capacity, assumed))
        return
    _print(found, assumed, limits.most)


def _measured(project: Project, name: str, per_replica: float | None) -> MeasuredRate:
    if per_replica is not None:
        return MeasuredRate(rate=per_replica, replicas=0, how="as given, not measured")
    try:
        found = run_async(measure_rate(project, name))
    except NotCreated:
        found = None
    if found is None:
        raise click.ClickException(
            f"no replica of {name} runs that has handled events: give --per-replica, such as 200/s"
        )
    return found


def _load(rate: float | None, burst: float, base: float, record: Path | None) -> tuple[Load, float]:
    """Return the load, and its length in seconds."""
    if record is not None:
        try:
            return recorded(record.read_text())
        except (OSError, ValueError) as error:
            raise click.BadParameter(f"{record}: {error}", param_hint="--from") from error

    def bursting(at: float) -> float:
        return (rate or 0.0) if _QUIET <= at < _QUIET + burst else base

    return bursting, _QUIET + burst


def _assumed(
    settings: ServiceSettings, measured: MeasuredRate, capacity: Capacity
) -> tuple[str, ...]:
    """Return what the plan takes for granted, in lines."""
    most = (
        f"all together {capacity.shared:g}/s at most"
        if capacity.shared is not None
        else f"more of them in proportion, which was measured on {measured.replicas} alone"
        if measured.replicas
        else "more of them in proportion, which nobody has measured"
    )
    return (
        f"a replica handles {measured.rate:.4g}/s ({measured.how}); {most}",
        f"replicas {settings.replicas}, of {capacity.partitions} partitions with equal shares; "
        f"target {settings.limits.target:g} s, cooldown {settings.limits.cooldown:g} s; "
        f"a replica handles events {capacity.start:g} s after it is wanted",
    )


def _print(found: Forecast, assumed: tuple[str, ...], most: int) -> None:
    for line in assumed:
        print_line(f"assumed: {line}")
    print_line("")
    changed = {at for at, _, _ in found.changes}
    last = found.moments[-1]
    rows: list[list[Cell]] = [
        [
            clock(each.at),
            each.replicas,
            f"{each.inflow:.0f}/s",
            round(each.lag),
            f"{each.oldest:.0f} s",
            each.why,
        ]
        for each in found.moments
        if each is found.moments[0] or each is last or each.at in changed
    ]
    print_table(["TIME", "REPLICAS", "ARRIVES", "LAG", "OLDEST", "WHY"], rows)
    print_line("")
    hours = most * last.at / 3600
    print_line(
        f"at most: {max(each.replicas for each in found.moments)} replicas, "
        f"{max(each.lag for each in found.moments):.0f} events that wait, the oldest "
        f"{max(each.oldest for each in found.moments):.0f} s"
    )
    print_line(
        f"cost: {found.replica_hours:.2f} replica-hours; {hours:.2f} with {most} all the time"
    )


def _as_value(
    name: str,
    found: Forecast,
    measured: MeasuredRate,
    capacity: Capacity,
    assumed: tuple[str, ...],
) -> dict[str, Any]:
    return {
        "service": name,
        "assumed": list(assumed),
        "rate": measured.rate,
        "measured_on": measured.replicas,
        "shared": capacity.shared,
        "partitions": capacity.partitions,
        "most_replicas": max(each.replicas for each in found.moments),
        "most_lag": round(max(each.lag for each in found.moments)),
        "most_oldest_seconds": max(each.oldest for each in found.moments),
        "replica_hours": round(found.replica_hours, 4),
        "changes": [{"at": at, "from": a, "to": b} for at, a, b in found.changes],
        "moments": [
            {
                "at": each.at,
                "inflow": each.inflow,
                "replicas": each.replicas,
                "lag": round(each.lag),
                "oldest_seconds": each.oldest,
                "why": each.why,
            }
            for each in found.moments
            if each.at % found.every == 0
        ],
    }


@command.command("serve")
@click.option("--listen", default="127.0.0.1:8082", help="The address, HOST:PORT.")
def serve(listen: str) -> None:
    """Tell autoscalers how many replicas each service needs, until Ctrl-C.

    GET /SERVICE, with the token of OYEZ_SCALE_TOKEN or that of admin ports, also for services that
    do not run.
    """
    try:
        address = Listen.parse(listen)
    except ValueError:
        text = f'expected an address "HOST:PORT", found "{listen}"'
        raise click.BadParameter(text, param_hint="--listen") from None
    run_async(_serve(Project.open(), address))


async def _serve(project: Project, address: Listen) -> None:
    from oyez.deploy.scaler import scaler
    from oyez.listening import HttpServer, bind, stop_signals
    from oyez.logger import Logger, configure

    configure(project.config.system.log)
    tokens = [project.token(), *filter(None, [project.scale_token()])]
    listener = bind(address.host, address.port, _refused)
    server = HttpServer(scaler(project, tokens), listener, grace=_GRACE)
    stopped = asyncio.Event()
    with stop_signals(stopped.set):
        await server.start()
        Logger().info("started", service="scale", http=server.address)
        await stopped.wait()
        await server.stop()


def _refused(expected: str, found: str) -> ConfigurationError:
    return ConfigurationError(f"--listen: expected {expected}, found {found}")
