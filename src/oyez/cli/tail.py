"""``oyez tail``: follows the events of one stream or of all, on every broker of the system."""

from __future__ import annotations

import asyncio
import json
import select
import sys
from contextlib import aclosing
from datetime import datetime

import click
from rich.text import Text

from oyez.cli.gaps import heed
from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import console, is_terminal, payload, shorten, warn, write
from oyez.errors import ConfigurationError
from oyez.inspection.follow import Arrival, as_value, following
from oyez.inspection.form import escape
from oyez.inspection.reach import Gap
from oyez.listening import stop_signals
from oyez.project import Project

LOOK = 0.5
"""Seconds between two checks whether the output is still read."""
SHORT_ID = 8
"""The number of last characters of an id that are shown; the first ones are its time."""


@click.command("tail")
@click.argument("stream", required=False)
@click.option("--type", "type_", help="Only events of this type.")
@click.option("--key", help="Only events with this key.")
@click.option("--from-start", is_flag=True, help="Begin with the oldest retained event.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after that many events.")
@json_option
def command(
    stream: str | None,
    type_: str | None,
    key: str | None,
    from_start: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Follow events live until Ctrl-C; of one STREAM (or service) or of all.

    A line shows the time, stream[partition]@position, type, key, the end of the id (which `oyez
    flow` accepts) and the data. --json prints one JSON object a line. In a system with several
    brokers it shows the broker, and an event copied by a bridge once for each broker.
    """
    project = Project.open()
    printer = _Printer(type_, key, limit, as_json, brokers=len(project.brokers) > 1)
    run_async(_tail(project, stream, printer, from_start))


async def _tail(project: Project, stream: str | None, printer: _Printer, from_start: bool) -> None:
    stopped = asyncio.Event()
    with stop_signals(stopped.set):
        tasks = [
            asyncio.create_task(_follow(project, stream, printer, from_start), name="tail"),
            asyncio.create_task(stopped.wait(), name="stop"),
            asyncio.create_task(_unread(), name="reader"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in done:
            task.result()


async def _unread() -> None:
    """Wait until the reader of a pipe has closed it, which nothing else reports."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # not a real file: it has no reader
        await asyncio.Event().wait()
    # The event loop does not report that a pipe's reader has closed it, so it is polled.
    while not any(event & select.POLLERR for _, event in poll.poll(0)):  # noqa: ASYNC110
        await asyncio.sleep(LOOK)


async def _follow(
    project: Project, stream: str | None, printer: _Printer, from_start: bool
) -> None:
    """Print until the limit is reached."""
    async with following(project, stream, from_start=from_start) as streams:
        heed(streams.gaps, answered=streams.answered)
        async with aclosing(streams.arrivals()) as arrivals:
            async for each in arrivals:
                if isinstance(each, Gap):
                    warn(str(each))
                elif printer.print(each):
                    return


class _Printer:
    """A filter and printer of records."""

    def __init__(
        self,
        type_: str | None,
        key: str | None,
        limit: int | None,
        as_json: bool,
        *,
        brokers: bool,
    ) -> None:
        """``brokers``: print the broker, since there are several."""
        if type_ == "" or key == "":
            raise ConfigurationError("--type and --key: expected a name, found nothing")
        self._type = type_
        self._key = key
        self._left = limit
        self._json = as_json
        self._brokers = brokers
        self._console = console()

    def print(self, arrival: Arrival) -> bool:
        """Print an event that matches the filter; return whether it was the last one."""
        if self._type not in (None, arrival.attributes.get("type")):
            return False
        if self._key not in (None, arrival.key):
            return False
        if self._json:
            write(json.dumps(as_value(arrival, broker=self._brokers)))
        elif is_terminal():
            self._console.print(self._line(arrival))
        else:
            write(self._line(arrival).plain)
        if self._left is not None:
            self._left -= 1
        return self._left == 0

    def _line(self, arrival: Arrival) -> Text:
        record, found, key = arrival.record, arrival.attributes, arrival.key
        line = Text(datetime.fromtimestamp(record.time).strftime("%H:%M:%S.%f")[:-3], style="dim")
        line = Text.assemble(
            line,
            (f" {arrival.broker}" if self._brokers else "", "magenta"),
            (f" {escape(record.stream)}[{record.partition}]@{record.position}", "cyan"),
            (f" {escape(found.get('type', '?'))}", "bold"),
            f" {'-' if key is None else escape(key)}",
            (f" {escape(found.get('id', '?'))[-SHORT_ID:]} ", "dim"),
        )
        data = payload(record.data)
        if is_terminal():
            data = shorten(data, max(self._console.width - line.cell_len, 10))
        return line.append(data)
