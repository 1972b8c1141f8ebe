"""``oyez flow ID``: the journey of an order over all services, from its first request."""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.text import Text
from rich.tree import Tree

from oyez.cli.gaps import heed
from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import console, is_terminal, print_json, print_line, warn
from oyez.errors import OyezError
from oyez.inspection.exported import export, written
from oyez.inspection.form import escape, span, utc_time
from oyez.inspection.holder import Holder, holders
from oyez.inspection.holder import as_value as holder_as_value
from oyez.inspection.journey import (
    EVENTS,
    JOURNEYS,
    Journey,
    JourneyEvent,
    Journeys,
    as_value,
    trace,
)
from oyez.inspection.reactions import Reaction
from oyez.project import Project


@click.command("flow")
@click.argument("identity", metavar="ID")
@click.option(
    "--export",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write its events, with their data, to FILE instead; for `oyez simulate --replay`.",
)
@json_option
def command(identity: str, file: Path | None, as_json: bool) -> None:
    """Show the journey of ID as a tree of events and handlers, and who holds it up.

    ID is a correlation id, an event id (or its last 8 characters, as `oyez tail` shows), or a
    subject, such as an order's id.
    """
    project = Project.open()
    found, held = run_async(_look(project, identity))
    heed(found.gaps, answered=found.answered)
    if not found.journeys:
        days = project.config.system.retention_days
        raise OyezError(
            f"{identity!r} is unknown: expected a correlation id, an event id or a "
            f"subject of the last {days:g} days; `oyez tail --from-start` lists them"
        )
    if file is not None:
        events = run_async(export(project, found.journeys))
        _write(file, written(events))
        if as_json:
            print_json({"events": len(events), "file": str(file)})
        else:
            print_line(f"{len(events)} events written to {file}")
        return
    if as_json:
        value = as_value(found)
        for journey, holder in zip(value["journeys"], held, strict=True):
            journey["held_up_by"] = holder_as_value(holder)
        print_json(value)
        return
    several = len(project.brokers) > 1
    for each, holder in zip(found.journeys, held, strict=True):
        _print(each, project.config.system.name, several, project.ambient.now())
        _print_holder(holder)
    if found.cut:
        warn(f"there is more: {JOURNEYS} journeys and {EVENTS} events are shown at most")


def _write(file: Path, content: bytes) -> None:
    """Write a file that its owner alone may read: it has the data of customers."""
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
            os.fchmod(opened.fileno(), 0o600)
            opened.write(content)
    except OSError as error:
        raise OyezError(f"{file}: {error.strerror}") from error


async def _look(project: Project, identity: str) -> tuple[Journeys, list[Holder]]:
    found = await trace(project, identity)
    return found, await holders(project, found.journeys, found.gaps)


def _print_holder(held: Holder) -> None:
    style = {"bad": "bold red", "warn": "yellow", "good": "green"}[held.level]
    text = Text.assemble(("held up by  ", "dim"), (escape(held.what), style))
    if held.why:
        text.append(f": {escape(held.why)}")
    if held.cure is not None:
        text.append(f"  see `{escape(held.cure.command)}`", style="dim")
    console().print(text)


def _print(journey: Journey, system: str, brokers: bool, now: float) -> None:
    """``brokers``: print the brokers of each event, since the system has several."""
    first, roots = journey.began, journey.events
    head = Text.assemble((escape(journey.correlation), "bold"), (f"  {utc_time(first)}", "dim"))
    if journey.by is not None:
        head.append(f"  by {escape(journey.by)}")
    output = console()
    if is_terminal():
        tree = Tree(head, guide_style="dim")
        waiting = [(tree, node) for node in reversed(roots)]
        while waiting:
            parent, node = waiting.pop()
            branch = parent.add(_event(node, system, brokers, first, now))
            for reaction in node.reactions:
                branch.add(_reaction(reaction, first, now))
            waiting += [(branch, child) for child in reversed(node.events)]
        output.print(tree)
        return
    output.print(head)
    pending = [(node, 1) for node in reversed(roots)]
    while pending:
        node, depth = pending.pop()
        output.print(Text("  " * depth).append_text(_event(node, system, brokers, first, now)))
        for reaction in node.reactions:
            output.print(Text("  " * (depth + 1)).append_text(_reaction(reaction, first, now)))
        pending += [(child, depth + 1) for child in reversed(node.events)]


def _event(node: JourneyEvent, system: str, brokers: bool, first: float, now: float) -> Text:
    text = Text.assemble(
        (f"{_offset(node.time, first)} ", "cyan"),
        (escape(node.type), "bold"),
        f"  {escape(node.source.removeprefix(f'/{system}/'))}",
        (f"  {'-' if node.key is None else escape(node.key)}", ""),
        (f"  {escape(node.id)[-8:]}", "dim"),
    )
    if node.state == "outbox":
        text.append("  in the outbox, not published yet", style="yellow")
    elif node.state == "refused":
        text.append("  refused by the broker", style="bold red")
    elif node.state == "held":
        text.append("  in the outbox, waits for a refused event of its key", style="red")
    elif node.state == "delayed":
        text.append(f"  delayed, {_until(node.due, now)}", style="yellow")
    elif brokers:
        text.append(f"  on {', '.join(each.broker for each in node.places)}", style="dim")
    return text


def _reaction(reaction: Reaction, first: float, now: float) -> Text:
    name = f"{escape(reaction.service)}.{escape(reaction.handler or '(unreadable)')}"
    text = Text.assemble(("→ ", "dim"), name)
    again = ", redriven" if reaction.redriven else ""
    match reaction.state:
        case "handled":
            tries = f" at attempt {reaction.attempts}" if reaction.attempts > 1 else ""
            text.append(f"  handled{tries}{again} {_offset(reaction.seen, first)}", style="green")
        case "pending" if reaction.bridge is not None:
            text.append(f"  not copied yet (bridge {reaction.bridge})", style="yellow")
        case "pending":
            text.append("  not read yet", style="yellow")
        case "waiting":
            text.append("  waits for an earlier event of its key", style="yellow")
        case "due":
            text.append(f"  about to run{again}", style="yellow")
        case "retrying":
            text.append(
                f"  failed {reaction.attempts}x{again}, next attempt {_until(reaction.due, now)}: "
                f"{escape(reaction.error or '?')}",
                style="yellow",
            )
        case _:
            text.append(
                f"  {reaction.state}{again}, dead letter {reaction.letter}: "
                f"{escape(reaction.error or '?')}",
                style="bold red" if reaction.state == "dead" else "dim",
            )
    return text


def _offset(moment: float | None, first: float) -> str:
    if moment is None:
        return "?"
    return f"{'-' if moment < first else '+'}{span(abs(moment - first))}"


def _until(due: float | None, now: float) -> str:
    if due is None:
        return "soon"
    return f"in {span(due - now)}" if due > now else "due"
