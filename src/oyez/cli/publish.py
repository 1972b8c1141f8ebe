"""``oyez publish TYPE JSON``: publishes one event by hand."""

from __future__ import annotations

import sys

import click

from oyez import strict_json
from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import closest, print_json, warn, write
from oyez.contract import decode
from oyez.envelope import Envelope, check_headers, format_time, open_record
from oyez.errors import ConfigurationError, InvalidEvent
from oyez.event import MAX_DATA, MAX_KEY, EventType
from oyez.inspection.form import escape
from oyez.inspection.reach import imported
from oyez.inspection.topology import Flow, flows
from oyez.observe.traced import traced
from oyez.ports import Record
from oyez.project import Project
from oyez.sites import kind
from oyez.spans import Tracer

SOURCE = "cli"
"""The service's name in the event's source: duplicates are detected by source and id, so an event
published by hand can neither imitate nor suppress an event of a service."""


@click.command("publish")
@click.argument("type_", metavar="TYPE")
@click.argument("data", metavar="JSON")
@click.option("--service", help="Publish to this service's stream.")
@click.option("--key", help="The key, instead of that of the event.")
@click.option("--force", is_flag=True, help="Publish a type that no service knows.")
@json_option
def command(
    type_: str, data: str, service: str | None, key: str | None, force: bool, as_json: bool
) -> None:
    """Publish one event of TYPE with JSON as its data; - reads the data from standard input.

    It is published to the stream of the service that publishes the type (or of --service), on that
    service's broker, and is checked against every class that the project's services declare for
    it. Prints the event's id.
    """
    project = Project.open()
    services, gaps = imported(project, (), ", so the types it knows are unknown")
    for gap in gaps:
        warn(str(gap))
    known = flows(services.values())
    flow = known.get(type_)
    if flow is None:
        if not force:
            names = closest(type_, known) or f"; known are: {', '.join(known) or 'none'}"
            raise ConfigurationError(
                f"no service knows the type {type_!r}{names} (--force publishes it all the same)"
            )
        flow = Flow(type=type_)
    try:
        payload = _read(data)
        kinds = [*flow.published_as, *flow.handled_as]
        events = _check(payload, kinds)
        chosen = _key(events) if key is None else key
        envelope = _wrap(project, flow, payload, chosen)
    except InvalidEvent as error:
        raise ConfigurationError(f"{escape(type_)}: {error}") from error
    home = _home(project, flow, service)
    stream = f"{project.config.system.name}.{home}"
    record = Record(stream=stream, key=chosen, headers=envelope.headers(), data=payload)
    system, on = project.config.system.name, kind(project.broker_url(home))
    with traced(project.ambient, system=system, service=SOURCE, broker=on) as tracer:
        run_async(_publish(project, home, record, tracer))
    if as_json:
        print_json(
            {
                "id": envelope.id,
                "source": envelope.source,
                "type": type_,
                "stream": stream,
                "key": chosen,
            }
        )
    else:
        write(envelope.id)


async def _publish(project: Project, service: str, record: Record, tracer: Tracer | None) -> None:
    span = None
    if tracer is not None:
        now = project.ambient.now()
        parent = record.headers["traceparent"] = tracer.root(now)
        span = tracer.send(parent, record.headers, record.stream, now)
    if span is not None:
        record.headers["traceparent"] = span.traceparent
    # Not as the service's group: some brokers would then keep events for it.
    async with project.opened_broker(service, create=True, group=False) as broker:
        await broker.publish([record])
    if span is not None:
        span.end(project.ambient.now())


def _read(text: str) -> bytes:
    data = (
        sys.stdin.buffer.read(MAX_DATA + 1)
        if text == "-"
        else text.encode(errors="surrogateescape")
    )
    if len(data) > MAX_DATA:
        raise InvalidEvent("$", f"is more than {MAX_DATA} bytes, which is the limit")
    strict_json.read(data)
    return data.strip()


def _check(data: bytes, kinds: list[EventType]) -> list[tuple[EventType, object]]:
    return [(kind, decode(kind, data)) for kind in kinds]


def _key(events: list[tuple[EventType, object]]) -> str | None:
    """Return the key by the publisher's class, else by the first consumer's class."""
    return next((kind.key(event) for kind, event in events if kind.key_field is not None), None)


def _wrap(project: Project, flow: Flow, data: bytes, key: str | None) -> Envelope:
    if key is not None and (not 1 <= len(key) <= MAX_KEY or not key.isprintable()):
        raise InvalidEvent("key", f"expected 1 to {MAX_KEY} printable characters")
    ambient = project.ambient
    identity = ambient.new_id()
    # Consumers refuse a version above their own; the data has been checked against all of them.
    oldest = min([*flow.published_as, *flow.handled_as], key=lambda k: k.version, default=None)
    envelope = Envelope(
        id=identity,
        source=f"/{project.config.system.name}/{SOURCE}",
        type=flow.type,
        data=data,
        subject=key,
        partitionkey=key,
        time=format_time(ambient.now()),
        dataschema=None if oldest is None else oldest.dataschema,
        correlationid=identity,
        traceparent=f"00-{ambient.bits(128):032x}-{ambient.bits(64):016x}-01",
    )
    check_headers(envelope.headers())
    open_record(envelope.headers(), data)
    return envelope


def _home(project: Project, flow: Flow, service: str | None) -> str:
    """Return the service whose stream the event is published to."""
    if service is not None:
        return project.settings(service).name
    if len(flow.publishers) == 1:
        return flow.publishers[0]
    if flow.publishers:
        raise ConfigurationError(
            f"{flow.type} is published by {', '.join(flow.publishers)}: choose with --service"
        )
    names = ", ".join(project.config.services)
    raise ConfigurationError(
        f"no service is known to publish {flow.type}: choose the stream's service with "
        f"--service; there are: {names}"
    )
