"""``oyez tail``: events as they come, of one stream or of all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import sys
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any, cast

import click
from rich.text import Text

from oyez.cli import history
from oyez.cli.printing import (
    console,
    escape,
    is_terminal,
    payload,
    payload_json,
    shorten,
    utc_time,
    warn,
    write,
)
from oyez.cli.project import Project, json_option, run_async
from oyez.errors import BrokerError, ConfigurationError, OyezError
from oyez.listening import stop_signals
from oyez.ports import BEGINNING, Batch, Broker, Position, Record

WAITING = 256
"""Records that were read and not printed yet, at most."""
LOOK = 0.5
"""Seconds between two looks at whether anyone still reads what is printed."""
SHORT_ID = 8
"""Characters of an event's id that are shown: its last ones, since the first tell the time."""


@click.command("tail")
@click.argument("stream", required=False)
@click.option("--type", "type_", help="Only events of this type.")
@click.option("--key", help="Only events with this key.")
@click.option("--from-start", is_flag=True, help="Begin with the oldest event that is kept.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many events.")
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

    A line tells when, where (stream[partition]@position), type, key, the end of the id (which
    `oyez flow` takes) and the data. --json prints one JSON object a line.
    """
    project = Project.open()
    printer = _Printer(type_, key, limit, as_json)
    run_async(_tail(project, stream, printer, from_start))


async def _tail(project: Project, stream: str | None, printer: _Printer, from_start: bool) -> None:
    async with project.opened_broker() as broker:
        chosen = None if stream is None else await _find(project, broker, stream)
        follower = _Follower(broker, chosen, printer, from_start)
        stopped = asyncio.Event()
        with stop_signals(stopped.set):
            tasks = [
                asyncio.create_task(follower.run(), name="tail"),
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


async def _find(project: Project, broker: Broker, stream: str) -> str:
    streams = await broker.streams()
    for name in (stream, f"{project.config.system.name}.{stream}"):
        if name in streams:
            return name
    names = ", ".join(sorted(streams)) or "none yet"
    raise OyezError(f"there is no stream {stream!r}; there are: {names}")


async def _unread() -> None:
    """Return when whoever read our output through a pipe has gone: nothing else would tell us."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # not a real file: nobody can go away
        await asyncio.Event().wait()
    # The loop's own watching of a pipe does not tell of its reader's end, so it is asked for.
    while not any(event & select.POLLERR for _, event in poll.poll(0)):  # noqa: ASYNC110
        await asyncio.sleep(LOOK)


class _Follower:
    """One reader a partition, one printer for all."""

    def __init__(
        self, broker: Broker, stream: str | None, printer: _Printer, from_start: bool
    ) -> None:
        self._broker = broker
        self._stream = stream
        self._printer = printer
        self._from_start = from_start
        self._queue: asyncio.Queue[list[Record] | BrokerError] = asyncio.Queue(1)
        self._followed: dict[str, list[asyncio.Task[None]]] = {}
        self._added = asyncio.Event()

    async def run(self) -> None:
        """Print until the limit is reached."""
        # Listening comes first: a stream that appears meanwhile is found, not missed.
        self._broker.on_streams(self._added.set)
        known = await self._streams()
        places: dict[history.Place, Position] = {}
        if self._broker.capabilities.history:
            places = await history.ends(self._broker, known)
        elif self._from_start:
            raise OyezError(
                "--from-start: this broker keeps no history, so what was published before can't "
                "be shown; without it, `oyez tail` follows what is published from now on"
            )
        if self._from_start:
            async with contextlib.aclosing(history.merged(self._broker, places)) as records:
                async for record in records:
                    if self._printer.print(record):
                        return
        watcher = asyncio.create_task(self._watch(places), name="streams")
        try:
            while True:
                arrived = await self._queue.get()
                if isinstance(arrived, BrokerError):
                    raise arrived
                for record in arrived:
                    if self._printer.print(record):
                        return
        finally:
            tasks = [watcher, *(task for tasks in self._followed.values() for task in tasks)]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _streams(self) -> list[str]:
        return [s for s in await self._broker.streams() if self._stream in (None, s)]

    async def _watch(self, places: dict[history.Place, Position]) -> None:
        while True:
            try:
                for stream, partitions in (await self._broker.streams()).items():
                    if self._stream in (None, stream) and stream not in self._followed:
                        self._followed[stream] = [
                            asyncio.create_task(
                                self._follow(stream, n, places.get((stream, n), BEGINNING))
                            )
                            for n in range(partitions)
                        ]
                await self._added.wait()
                self._added.clear()
            except BrokerError as error:
                warn(f"{error}; trying again")
                await asyncio.sleep(1.0)

    async def _follow(self, stream: str, partition: int, after: Position) -> None:
        while True:
            reader = cast(AsyncGenerator[Batch, None], self._broker.read(stream, partition, after))
            try:
                async for batch in reader:
                    after = batch.records[-1].position
                    for start in range(0, len(batch.records), WAITING):
                        await self._queue.put(batch.records[start : start + WAITING])
            except BrokerError as error:
                if not error.transient:
                    await self._queue.put(error)
                    return
                warn(f"{stream}[{partition}]: {error}; trying again")
                await asyncio.sleep(1.0)
            finally:
                await reader.aclose()


class _Printer:
    """Prints the records that are asked for."""

    def __init__(
        self, type_: str | None, key: str | None, limit: int | None, as_json: bool
    ) -> None:
        if type_ == "" or key == "":
            raise ConfigurationError("--type and --key: expected a name, found nothing")
        self._type = type_
        self._key = key
        self._left = limit
        self._json = as_json
        self._console = console()

    def print(self, record: Record) -> bool:
        """Print it if it is asked for; whether that was the last one."""
        found = history.attributes(record)
        key = found.get("partitionkey", found.get("subject", record.key))
        if self._type not in (None, found.get("type")) or self._key not in (None, key):
            return False
        if self._json:
            write(json.dumps(_as_value(record, dict(found), key)))
        elif is_terminal():
            self._console.print(self._line(record, dict(found), key))
        else:
            write(self._line(record, dict(found), key).plain)
        if self._left is not None:
            self._left -= 1
        return self._left == 0

    def _line(self, record: Record, found: dict[str, str], key: str | None) -> Text:
        line = Text(datetime.fromtimestamp(record.time).strftime("%H:%M:%S.%f")[:-3], style="dim")
        line = Text.assemble(
            line,
            (f" {escape(record.stream)}[{record.partition}]@{record.position}", "cyan"),
            (f" {escape(found.get('type', '?'))}", "bold"),
            f" {'-' if key is None else escape(key)}",
            (f" {escape(found.get('id', '?'))[-SHORT_ID:]} ", "dim"),
        )
        data = payload(record.data)
        if is_terminal():
            data = shorten(data, max(self._console.width - line.cell_len, 10))
        return line.append(data)


def _as_value(record: Record, found: dict[str, str], key: str | None) -> dict[str, Any]:
    return {
        "time": utc_time(record.time),
        "stream": record.stream,
        "partition": record.partition,
        "position": record.position,
        "type": found.get("type"),
        "id": found.get("id"),
        "source": found.get("source"),
        "key": key,
        "attributes": found,
        **payload_json(record.data),
    }
