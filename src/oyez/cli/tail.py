"""``oyez tail``: events as they come, of one stream or of all, on every broker of the system."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import sys
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, cast

import click
from rich.text import Text

from oyez.cli.invocation import ask_brokers, json_option, opened_brokers, run_async
from oyez.cli.printing import console, is_terminal, payload, shorten, warn, write
from oyez.endpoint import redact
from oyez.errors import BrokerError, ConfigurationError, OyezError
from oyez.inspection import history
from oyez.inspection.form import escape, payload_json, utc_time
from oyez.listening import stop_signals
from oyez.ports import BEGINNING, Batch, Broker, Position, Record
from oyez.project import Project

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
    `oyez flow` takes) and the data. --json prints one JSON object a line. Where the system has
    more than one broker it tells which, and an event that a bridge copied comes from each.
    """
    project = Project.open()
    names = {place: each.name for place, each in project.brokers.items()}
    printer = _Printer(type_, key, limit, as_json, names if len(names) > 1 else {})
    run_async(_tail(project, stream, printer, from_start))


async def _tail(project: Project, stream: str | None, printer: _Printer, from_start: bool) -> None:
    async with opened_brokers(project) as brokers:
        stopped = asyncio.Event()
        with stop_signals(stopped.set):
            following = _follow(project, brokers, stream, printer, from_start)
            tasks = [
                asyncio.create_task(following, name="tail"),
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
    """Return when whoever read our output through a pipe has gone: nothing else would tell us."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # not a real file: nobody can go away
        await asyncio.Event().wait()
    # The loop's own watching of a pipe does not tell of its reader's end, so it is asked for.
    while not any(event & select.POLLERR for _, event in poll.poll(0)):  # noqa: ASYNC110
        await asyncio.sleep(LOOK)


async def _follow(
    project: Project,
    brokers: Mapping[str, Broker],
    stream: str | None,
    printer: _Printer,
    from_start: bool,
) -> None:
    """Print until the limit is reached."""
    queue: asyncio.Queue[_Arrived] = asyncio.Queue(1)
    # Listening comes first: a stream that appears meanwhile is found, not missed.
    names = {place: each.name for place, each in project.brokers.items()}
    followers = {url: _Follower(url, names[url], broker, queue) for url, broker in brokers.items()}

    async def streams(url: str) -> Collection[str]:
        return await brokers[url].streams()

    known = await ask_brokers(project, brokers, streams)
    chosen = None if stream is None else _choose(project, known.values(), stream)

    async def ends(url: str) -> dict[history.Place, Position]:
        if brokers[url].capabilities.history:
            wanted = [each for each in known[url] if chosen in (None, each)]
            return await history.ends(brokers[url], wanted)
        if from_start:
            raise OyezError(
                "--from-start: this broker keeps no history, so what was published before can't "
                "be shown; without it, `oyez tail` follows what is published from now on"
            )
        return {}

    places = await ask_brokers(project, known, ends)
    if from_start:
        kept = [(url, brokers[url], there) for url, there in places.items()]
        short: list[history.Place] = []
        async with contextlib.aclosing(history.merged(kept, short)) as records:
            async for url, record in records:
                if printer.print(url, record):
                    return
        for gap in history.deleted(short):
            warn(str(gap))
    tasks = [
        asyncio.create_task(followers[url].run(chosen, there), name="streams")
        for url, there in places.items()
    ]
    try:
        while True:
            url, arrived = await queue.get()
            if isinstance(arrived, BrokerError):
                raise arrived
            for record in arrived:
                if printer.print(url, record):
                    return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _choose(project: Project, known: Iterable[Collection[str]], stream: str) -> str:
    streams = {name for each in known for name in each}
    for name in (stream, f"{project.config.system.name}.{stream}"):
        if name in streams:
            return name
    names = ", ".join(sorted(streams)) or "none yet"
    raise OyezError(f"there is no stream {stream!r}; there are: {names}")


_Arrived = tuple[str, list[Record] | BrokerError]
"""The URL of a broker and what came from there."""


class _Follower:
    """The streams of one broker, with a reader for each partition."""

    def __init__(self, url: str, name: str, broker: Broker, queue: asyncio.Queue[_Arrived]) -> None:
        self._url = url
        self._name = name
        self._broker = broker
        self._queue = queue
        self._followed: dict[str, list[asyncio.Task[None]]] = {}
        self._added = asyncio.Event()
        broker.on_streams(self._added.set)

    async def run(self, chosen: str | None, places: Mapping[history.Place, Position]) -> None:
        """Follow the stream, or all of them, from these places on, until cancelled."""
        try:
            await self._watch(chosen, places)
        finally:
            tasks = [task for tasks in self._followed.values() for task in tasks]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _watch(self, chosen: str | None, places: Mapping[history.Place, Position]) -> None:
        while True:
            try:
                for stream, partitions in (await self._broker.streams()).items():
                    if chosen in (None, stream) and stream not in self._followed:
                        self._followed[stream] = [
                            asyncio.create_task(
                                self._read(stream, n, places.get((stream, n), BEGINNING))
                            )
                            for n in range(partitions)
                        ]
                await self._added.wait()
                self._added.clear()
            except BrokerError as error:
                warn(f"broker {self._name}: {error}; trying again")
                await asyncio.sleep(1.0)

    async def _read(self, stream: str, partition: int, after: Position) -> None:
        while True:
            reader = cast(AsyncGenerator[Batch, None], self._broker.read(stream, partition, after))
            try:
                async for batch in reader:
                    after = batch.records[-1].position
                    for start in range(0, len(batch.records), WAITING):
                        await self._queue.put((self._url, batch.records[start : start + WAITING]))
            except BrokerError as error:
                if not error.transient:
                    await self._queue.put((self._url, error))
                    return
                warn(f"broker {self._name}: {stream}[{partition}]: {error}; trying again")
                await asyncio.sleep(1.0)
            finally:
                await reader.aclose()


class _Printer:
    """Prints the records that are asked for."""

    def __init__(
        self,
        type_: str | None,
        key: str | None,
        limit: int | None,
        as_json: bool,
        brokers: Mapping[str, str],
    ) -> None:
        """``brokers``: names to tell them apart, by URL; none where there is nothing to tell."""
        if type_ == "" or key == "":
            raise ConfigurationError("--type and --key: expected a name, found nothing")
        self._type = type_
        self._key = key
        self._left = limit
        self._json = as_json
        self._brokers = brokers
        self._console = console()

    def print(self, broker: str, record: Record) -> bool:
        """Print what came from the broker with this URL, if it is asked for.

        Returns whether that was the last one.
        """
        found = history.attributes(record)
        key = found.get("partitionkey", found.get("subject", record.key))
        if self._type not in (None, found.get("type")) or self._key not in (None, key):
            return False
        if self._json:
            origin = {"broker": redact(broker)} if self._brokers else {}
            write(json.dumps({**_as_value(record, dict(found), key), **origin}))
        elif is_terminal():
            self._console.print(self._line(broker, record, dict(found), key))
        else:
            write(self._line(broker, record, dict(found), key).plain)
        if self._left is not None:
            self._left -= 1
        return self._left == 0

    def _line(self, broker: str, record: Record, found: dict[str, str], key: str | None) -> Text:
        line = Text(datetime.fromtimestamp(record.time).strftime("%H:%M:%S.%f")[:-3], style="dim")
        line = Text.assemble(
            line,
            (f" {self._brokers[broker]}" if self._brokers else "", "magenta"),
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
