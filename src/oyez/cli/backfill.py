"""``oyez backfill``: a service announces what it has to one that lacks the history of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from oyez.cli.invocation import actor, json_option, run_async, why_option
from oyez.cli.printing import closest, print_json, print_line, warn
from oyez.errors import ConfigurationError
from oyez.listening import stop_signals
from oyez.observe.traced import traced
from oyez.project import Project
from oyez.runtime.audit import Actor
from oyez.runtime.backfill import Walk, Walked
from oyez.service import Backfill, Service
from oyez.sites import kind
from oyez.transaction import Announcer


@click.command("backfill")
@click.argument("service")
@click.argument("event")
@click.option("--for", "recipient", metavar="SERVICE", required=True, help="Who asked for it.")
@why_option
@json_option
def command(service: str, event: str, recipient: str, why: str, as_json: bool) -> None:
    """Announce what SERVICE has as EVENT, a class or a type, to the service that asked.

    The events are those of the function that SERVICE declares with @service.backfill. They go
    through its outbox, behind all that it has announced before: no later change is overwritten.
    The same command goes on where it was interrupted. A running SERVICE publishes them meanwhile.
    """
    project = Project.open()
    owner = project.service(project.settings(service).name)
    backfill = _chosen(owner, event)
    views = _asking(project, recipient, backfill)
    walked = run_async(_walk(project, owner, backfill, recipient, actor(why)))
    if as_json:
        print_json({"event": backfill.event.name, "for": recipient, "announced": walked.announced})
        return
    print_line(f"{walked.announced} of {backfill.event.name} are announced to {recipient}")
    for view in views:
        print_line(
            f"a view that lacks its history begins there: oyez view begin {recipient} {view}"
        )


def _chosen(owner: Service, event: str) -> Backfill:
    """Return the backfill of an event, by its class or type. Raises ConfigurationError."""
    offered = {}
    for name, backfill in owner.backfills.items():
        offered[backfill.event.cls.__name__] = offered[name] = backfill
    if event in offered:
        return offered[event]
    names = ", ".join(sorted(each.event.cls.__name__ for each in owner.backfills.values()))
    raise ConfigurationError(
        f"{owner.name} offers no backfill of {event}; it offers {names or 'none'}"
        + (closest(event, offered) or ": declare one with @service.backfill")
    )


def _asking(project: Project, recipient: str, backfill: Backfill) -> list[str]:
    """Return the views of the recipient that apply the event.

    Raises ConfigurationError for a service that is unknown, or does nothing with the event.
    """
    project.settings(recipient)
    services, failed = project.services(recipient)
    if failed:
        warn(f"{recipient} can't be imported, so it may not handle the event: {failed[recipient]}")
        return []
    wanted = backfill.event.name
    asking = services[recipient]
    if not any(wanted in (kind.name for kind in each.events) for each in asking.subscriptions):
        raise ConfigurationError(
            f"{recipient} handles no {wanted}: declare a handler or a view that does, and deploy it"
        )
    return [
        kind.view
        for kind, handler in asking.views.items()
        if wanted in (each.name for each in handler.events)
    ]


async def _walk(
    project: Project, owner: Service, backfill: Backfill, recipient: str, by: Actor
) -> Walked:
    stopped = asyncio.Event()
    opened = project.opened_broker(owner.name)
    system, on = project.config.system.name, kind(project.broker_url(owner.name))
    async with opened as broker, project.opened_store(owner.name) as store:
        with traced(project.ambient, system=system, service=owner.name, broker=on) as tracer:
            announcer = Announcer(
                system,
                owner.name,
                project.ambient,
                lambda: broker.capabilities.max_bytes,
                tracer,
            )
            walk = Walk(backfill, recipient, broker=broker, store=store, announcer=announcer)
            if await walk.begin(by=by):
                warn(f"goes on after {walk.walked.after!r}: {walk.walked.announced} are announced")
            with stop_signals(stopped.set), _progress() as told:
                while await walk.chunk():
                    told(walk.walked.announced)
                    if stopped.is_set():
                        warn("interrupted: the same command goes on from here")
                        raise click.Abort
                    await asyncio.sleep(0)  # the service may write between two chunks
    return walk.walked


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; yields what is told the number of events that are announced."""
    output = Console(stderr=True)
    if not output.is_terminal:
        yield lambda done: None
        return
    columns = (BarColumn(), TextColumn("{task.completed:.0f} announced"), TimeElapsedColumn())
    with Progress(*columns, console=output, transient=True) as progress:
        # Nobody knows how many there are: that would be another query for each service to write.
        task = progress.add_task("backfill", total=None)
        yield lambda done: progress.update(task, completed=done)
