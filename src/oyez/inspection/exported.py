"""A flow as a file: every event of some journeys as it is on the brokers, a JSON object a line."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from oyez.errors import ConfigurationError
from oyez.inspection import history
from oyez.inspection.journey import EVENTS, Journey
from oyez.inspection.reach import reached
from oyez.ports import Broker, Record
from oyez.project import Project

MOST_BYTES = 64 * 1024 * 1024
"""The limit of a file that is read."""


class Exported(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a flow."""

    at: float
    """Seconds since the first event of the flow."""
    stream: str
    headers: dict[str, str]
    key: str | None = None
    data: Any = msgspec.UNSET
    """Its data, where that is JSON."""
    data_base64: str | None = None
    """Any other data."""

    def record(self) -> Record:
        """Return the event as a record."""
        data = None if self.data is msgspec.UNSET else msgspec.json.encode(self.data)
        if self.data_base64 is not None:
            data = base64.b64decode(self.data_base64)
        return Record(stream=self.stream, key=self.key, headers=self.headers, data=data)


async def export(project: Project, journeys: Iterable[Journey]) -> list[Exported]:
    """Return the events of these journeys that are on the brokers, in the order of time.

    Each is there once, however many brokers have it. Raises BrokerError.
    """
    chosen = {each.correlation for each in journeys}
    found: dict[tuple[str | None, str | None], Record] = {}

    def keep(record: Record) -> None:
        stated = history.attributes(record)
        identity = stated.get("id"), stated.get("source")
        if stated.get("correlationid", stated.get("id")) in chosen and len(found) < EVENTS:
            found.setdefault(identity, record)

    async def scan(site: str, broker: Broker) -> None:
        ends = await history.ends(broker, await history.streams(broker))
        await history.scan(broker, ends, keep)

    async with reached(project) as reach:
        await reach.ask(scan)
    records = sorted(found.values(), key=lambda each: each.time)
    began = records[0].time if records else 0.0
    return [_exported(each, began) for each in records]


def _exported(record: Record, began: float) -> Exported:
    data: Any = msgspec.UNSET
    other = None
    if record.data is not None:
        try:
            data = msgspec.json.decode(record.data)
        except msgspec.DecodeError:
            other = base64.b64encode(record.data).decode()
    return Exported(
        at=round(record.time - began, 6),
        stream=record.stream,
        headers=record.headers,
        key=record.key,
        data=data,
        data_base64=other,
    )


def written(events: Sequence[Exported]) -> bytes:
    """Return the content of a file."""
    return b"".join(msgspec.json.encode(each) + b"\n" for each in events)


def read(file: Path) -> list[Exported]:
    """Return the events of a file, at least one. Raises ConfigurationError naming the line."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ConfigurationError(f"{file}: expected at most {MOST_BYTES} bytes")
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from error
    events = []
    for number, line in enumerate(lines, 1):
        try:
            event = msgspec.json.decode(line, type=Exported)
            event.record()
        except (msgspec.DecodeError, ValueError) as error:
            raise ConfigurationError(
                f"{file}:{number}: {error}: expected what `oyez flow ID --export FILE` writes"
            ) from error
        events.append(event)
    if not events:
        raise ConfigurationError(f"{file}: expected at least one event")
    return events
