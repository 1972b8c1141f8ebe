"""``oyez dead``: list, show, redrive and discard the dead letters of any service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from oyez import strict_json
from oyez.cli.gaps import refuse
from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import (
    Cell,
    closest,
    console,
    local_time,
    payload,
    print_json,
    print_line,
    print_table,
    warn,
)
from oyez.errors import ConfigurationError, InvalidEvent, NotRedriven, OyezError
from oyez.event import MAX_DATA
from oyez.inspection.form import escape
from oyez.inspection.letters import (
    WholeLetter,
    as_value,
    list_letters,
    show_letter,
    whole_as_value,
)
from oyez.ports import Store
from oyez.project import Project
from oyez.runtime.dead import discard, list_dead, redrive, show_dead
from oyez.tables import OUTBOX

_PAGE = 500

_LETTER = click.IntRange(min=1, max=2**63 - 1)
_service = click.argument("service")
_ids = click.argument("ids", metavar="ID...", nargs=-1, type=_LETTER)


@click.group("dead")
def command() -> None:
    """List, show, redrive or discard dead letters.

    A dead letter is an event that a handler gave up on. These commands open the service's store
    themselves, whether the service runs or not.
    """


@command.command("list")
@click.argument("service", required=False)
@click.option("--all", "every", is_flag=True, help="Include redriven and discarded ones.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=100, help="Per service, oldest first."
)
@json_option
def list_(service: str | None, every: bool, limit: int, as_json: bool) -> None:
    """List the dead letters of one service, or of all."""
    project = Project.open()
    names = [project.settings(service).name] if service else list(project.config.services)
    found = run_async(list_letters(project, names, every=every, limit=limit))
    for gap in found.gaps:
        refuse(gap)
    if as_json:
        print_json({"letters": [as_value(each) for each in found.letters], "more": found.more})
        return
    if not found.letters:
        print_line("no dead letters")
        return
    rows: list[list[Cell]] = [
        [
            each.service,
            each.id,
            local_time(each.time),
            each.type or "?",
            each.key,
            each.handler or Text("(unreadable)", style="yellow"),
            each.attempts,
            *([each.state] if every else []),
            each.reason,
        ]
        for each in found.letters
    ]
    states = ["STATE"] if every else []
    print_table(
        ["SERVICE", "ID", "TIME", "TYPE", "KEY", "HANDLER", "ATTEMPTS", *states, "REASON"], rows
    )
    if found.more:
        warn(f"there are more: --limit {limit * 10}")


@command.command("show")
@_service
@click.argument("letter", metavar="ID", type=_LETTER)
@json_option
def show(service: str, letter: int, as_json: bool) -> None:
    """Show one dead letter: its reason, each attempt, the traceback, headers and data."""
    project = Project.open()
    whole = run_async(show_letter(project, service, letter))
    if whole is None:
        raise OyezError(f"{service} has no dead letter {letter}: `oyez dead list {service} --all`")
    if as_json:
        print_json(whole_as_value(whole))
    else:
        _print(whole)


def _print(whole: WholeLetter) -> None:
    output = console()
    letter = whole.letter
    facts = {
        "reason": letter.reason,
        "state": f"{letter.state} ({letter.note})" if letter.note else letter.state,
        "time": local_time(letter.time),
        "handler": letter.handler or "none: the event could not be decoded",
        "attempts": letter.attempts,
        "type": letter.type or "?",
        "key": "-" if letter.key is None else letter.key,
        "event": letter.event_id or "?",
        "source": whole.source or "?",
        "place": f"{letter.stream}[{letter.partition}]@{letter.position}",
    }
    output.print(Text(f"dead letter {letter.id} of {letter.service}", style="bold"))
    for name, value in facts.items():
        output.print(Text.assemble((f"  {name:<9} ", "dim"), escape(value)))
    output.print(Text("attempts", style="bold"))
    for entry in whole.history:
        line = f"  {entry.get('attempt', '?')}  {local_time(entry['at'])}  {entry.get('error', '')}"
        output.print(escape(line))
    if not whole.history:
        output.print("  none")
    output.print(Text("traceback", style="bold"))
    for line in whole.traceback.splitlines() or ["none"]:
        output.print("  " + escape(line))
    output.print(Text("headers", style="bold"))
    for name, value in whole.headers.items():
        output.print(f"  {escape(name)}: {escape(value)}")
    output.print(Text("data", style="bold"))
    output.print("  " + payload(whole.data))


@command.command("redrive")
@_service
@_ids
@click.option("--all", "every", is_flag=True, help="Redrive every dead letter of the service.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--handler", help="Pass it to this handler instead of the one that gave up.")
@click.option(
    "--data",
    "file",
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True, path_type=Path),
    help="A file (- for standard input) whose JSON replaces the event's data.",
)
@click.option("--old", is_flag=True, help="Even if a duplicate could no longer be detected.")
def redrive_(
    service: str,
    ids: tuple[int, ...],
    every: bool,
    yes: bool,
    handler: str | None,
    file: Path | None,
    old: bool,
) -> None:
    """Redrive dead letters: pass them to their handler again, with fresh attempts."""
    project = Project.open()
    project.settings(service)
    if every == bool(ids):
        raise ConfigurationError("name the dead letters by their ids, or use --all")
    if file is not None and len(ids) != 1:
        raise ConfigurationError("--data replaces the data of one dead letter: name one")
    data = None if file is None else _data(file)
    handlers = _handlers(project, service, handler)
    chosen = run_async(_all(project, service)) if every else list(dict.fromkeys(ids))
    if every:
        if not chosen:
            print_line(f"{service} has no dead letters")
            return
        _confirm(f"Redrive {len(chosen)} dead letters of {service}?", yes)
    run_async(_redrive(project, service, chosen, handlers, handler, data, old))


def _data(file: Path) -> bytes:
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(MAX_DATA + 1)
        else:
            with file.open("rb") as source:
                data = source.read(MAX_DATA + 1)
    except OSError as error:
        raise ConfigurationError(f"--data: {file}: {error.strerror}") from error
    try:
        if len(data) > MAX_DATA:
            raise InvalidEvent("$", f"is more than {MAX_DATA} bytes, which is the limit")
        strict_json.read(data)
    except InvalidEvent as error:
        raise ConfigurationError(f"--data: {file}: {error}") from error
    return data


def _handlers(project: Project, service: str, handler: str | None) -> set[str] | None:
    """Return the service's handlers; None if it can't be imported."""
    services, failed = project.services(service)
    if service not in services:
        warn(f"{service} can't be imported, so its handlers are unknown: {failed[service]}")
        return None
    names = {each.name for each in services[service].handlers}
    if handler is not None and handler not in names:
        raise ConfigurationError(
            f"{service} has no handler {handler!r}{closest(handler, names)}; "
            f"there are: {', '.join(sorted(names)) or 'none'}"
        )
    return names


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} There is no terminal to ask on: use --yes")
    if not click.confirm(question, err=True):
        raise OyezError("nothing was redriven")


async def _all(project: Project, service: str) -> list[int]:
    async with project.opened_store(service) as store:
        found: list[int] = []
        while True:
            after = found[-1] if found else 0
            rows = await list_dead(store, after=after, limit=_PAGE)
            found.extend(row["id"] for row in rows)
            if len(rows) < _PAGE:
                return found


async def _redrive(
    project: Project,
    service: str,
    chosen: list[int],
    handlers: set[str] | None,
    handler: str | None,
    data: bytes | None,
    old: bool,
) -> None:
    async def one(store: Store, letter: int) -> str:
        row = await show_dead(store, letter)
        target = handler or (row["handler"] if row is not None else "")
        if target not in ("", OUTBOX) and handlers is not None and target not in handlers:
            names = ", ".join(sorted(handlers)) or "none"
            raise NotRedriven(
                f"dead letter {letter} is of {target}, a handler that {service} no longer has: "
                f"name another with --handler; there are: {names}"
            )
        await redrive(store, letter, project.ambient, handler=handler, data=data, old=old)
        return f"redriven: {service} {letter}"

    await _each(project, service, chosen, one)


@command.command("discard")
@_service
@_ids
@click.option("--why", required=True, help="The reason; kept with the dead letter.")
def discard_(service: str, ids: tuple[int, ...], why: str) -> None:
    """Mark dead letters as discarded."""
    project = Project.open()
    project.settings(service)
    if not ids:
        raise ConfigurationError("name the dead letters by their ids")
    if not why.strip():
        raise ConfigurationError("--why: state why they may be discarded")

    async def one(store: Store, letter: int) -> str:
        await discard(store, letter, why)
        return f"discarded: {service} {letter}"

    run_async(_each(project, service, list(dict.fromkeys(ids)), one))


async def _each(project: Project, service: str, chosen: list[int], one: Any) -> None:
    """Call ``one`` for each letter; fail at the end if some were refused."""
    refused: list[NotRedriven] = []
    async with project.opened_store(service) as store:
        for letter in chosen:
            try:
                print_line(await one(store, letter))
            except NotRedriven as error:
                refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        for each in refused:
            warn(str(each))
        raise OyezError(f"{len(refused)} of {len(chosen)} were refused")
