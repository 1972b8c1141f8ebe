"""``oyez lag``: owners, positions and lag of partitions, and waiting events."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.text import Text

from oyez.cli.gaps import refuse
from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import UNKNOWN, Cell, print_json, print_line, print_table, warn
from oyez.inspection.form import span
from oyez.inspection.lag import PartitionLag, ServiceLag, as_value, measure_all
from oyez.project import Project


@click.command("lag")
@click.argument("service", required=False)
@json_option
def command(service: str | None, as_json: bool) -> None:
    """Show partitions, owners, positions and lag, of one service or of all.

    The lag is the number of records after the position; the age is that of the oldest one that the
    service has a handler for. "?" is an unknown value. Without SERVICE, partitions without lag,
    parked events or dead letters share a line, with the sums of their positions.
    """
    project = Project.open()
    names = [project.settings(service).name] if service else list(project.config.services)
    lag = run_async(measure_all(project, names))
    for gap in lag.gaps:
        if gap.cause == "configuration" or (service is not None and gap.part == "store"):
            refuse(gap)
        warn(str(gap))
    if as_json:
        print_json(as_value(lag))
        return
    _print_partitions(lag.services, lag.at, each_one=service is not None)
    _print_services(lag.services, lag.at)
    for name in lag.not_created:
        print_line(f"{name}: has not run yet")


def _print_partitions(measured: Sequence[ServiceLag], now: float, *, each_one: bool) -> None:
    rows: list[list[Cell]] = []
    for lag in measured:
        groups: list[list[PartitionLag]] = []
        for each in lag.partitions:
            if groups and not each_one and _alike(groups[-1][-1], each):
                groups[-1].append(each)
            else:
                groups.append([each])
        rows += [[lag.service, *_row(group, now)] for group in groups]
    if rows:
        titles = "SERVICE PARTITION OWNER EPOCH POSITION END LAG OLDEST PARKED DEAD".split()
        print_table(titles, rows)
        print_line("")


def _alike(one: PartitionLag, other: PartitionLag) -> bool:
    """Return whether two partitions can share a line: neither has lag, parked or dead events."""
    quiet = all(each.lag == 0 and not each.parked and not each.dead for each in (one, other))
    return quiet and (one.stream, one.owner, one.epoch) == (other.stream, other.owner, other.epoch)


def _row(group: list[PartitionLag], now: float) -> list[Cell]:
    first, last = group[0], group[-1]
    numbers = f"{first.partition}" if len(group) == 1 else f"{first.partition}-{last.partition}"
    return [
        f"{first.stream}[{numbers}]",
        _owner(first.owner, first.alive),
        first.epoch,
        sum(each.position for each in group),
        UNKNOWN if first.end is None else sum(each.end or 0 for each in group),
        _behind(first.lag),
        _waits(first.oldest, first.oldest_known, now),
        first.parked,
        first.dead,
    ]


def _print_services(measured: Sequence[ServiceLag], now: float) -> None:
    rows: list[list[Cell]] = [
        [
            lag.service,
            len(lag.replicas),
            _behind(lag.lag),
            _waits(lag.oldest, lag.oldest_known, now),
            lag.parked,
            lag.dead,
            lag.outbox - lag.outbox_later,
            lag.outbox_later,
            _waits(lag.outbox_oldest, not lag.outbox or lag.outbox == lag.outbox_later, now),
        ]
        for lag in measured
    ]
    if rows:
        titles = "SERVICE REPLICAS LAG OLDEST PARKED DEAD OUTBOX DELAYED OUTBOX-OLDEST".split()
        print_table(titles, rows)


def _owner(owner: str | None, alive: bool) -> Cell:
    if owner is None:
        return None
    return owner if alive else Text(f"{owner} (dead)", style="red")


def _behind(lag: int | None) -> Cell:
    if lag is None:
        return UNKNOWN
    return Text(str(lag), style="yellow") if lag else lag


def _waits(then: float | None, known: bool, now: float) -> Cell:
    """Return the cell of an age: "?" if unknown, unless some event is known to wait."""
    if then is None:
        return None if known else UNKNOWN
    return span(max(0.0, now - then))
