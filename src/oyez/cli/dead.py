"""``oyez dead``: list, group, show, redrive and discard the dead letters of any service."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from oyez import strict_json
from oyez.cli.gaps import refuse
from oyez.cli.invocation import actor, json_option, run_async, why_option
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
    group_letters,
    groups_as_value,
    list_letters,
    show_letter,
    whole_as_value,
)
from oyez.listening import stop_signals
from oyez.ports import Store
from oyez.project import Project
from oyez.runtime.dead import Wanted, count_dead
from oyez.runtime.redrive import (
    Settled,
    Step,
    Told,
    discard_letters,
    handlers_of,
    preview_letters,
    redrive_letters,
)
from oyez.service import Service
from oyez.tables import OUTBOX

_PREVIEWS = 100
"""The limit of letters that a dry run shows."""

_LETTER = click.IntRange(min=1, max=2**63 - 1)
_GROUP = re.compile(r"[0-9a-f]{16}")
_service = click.argument("service")
_ids = click.argument("ids", metavar="ID...", nargs=-1, type=_LETTER)

F = TypeVar("F", bound=Callable[..., object])


def _named(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and _GROUP.fullmatch(value) is None:
        raise click.BadParameter(f"{value}: expected 16 hexadecimal digits: see oyez dead groups")
    return value


def _wanted(function: F) -> F:
    """Add the options that choose dead letters."""
    for option in (
        click.option("--text", help="Only those whose reason has this in it."),
        click.option("--key", help="Only those of this key."),
        click.option("--type", "type", help="Only those of this type."),
        click.option("--handler", help="Only those of this handler."),
    ):
        function = option(function)
    return function


@click.group("dead")
def command() -> None:
    """List, group, show, redrive or discard dead letters.

    A dead letter is an event that a handler gave up on. These commands open the service's store
    themselves, whether the service runs or not.
    """


@command.command("list")
@click.argument("service", required=False)
@click.option("--all", "every", is_flag=True, help="Include redriven and discarded ones.")
@click.option("--group", callback=_named, help="Only those of this group.")
@_wanted
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=100, help="Per service, oldest first."
)
@json_option
def list_(
    service: str | None, every: bool, limit: int, as_json: bool, **wanted: str | None
) -> None:
    """List the dead letters of one service, or of all."""
    project = Project.open()
    names = [project.settings(service).name] if service else list(project.config.services)
    found = run_async(
        list_letters(project, names, every=every, limit=limit, wanted=Wanted(**wanted))
    )
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


@command.command("groups")
@click.argument("service", required=False)
@_wanted
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, help="Per service, largest first."
)
@json_option
def groups(service: str | None, limit: int, as_json: bool, **wanted: str | None) -> None:
    """Group the dead letters of one service, or of all, by handler, type and cause.

    A cause is a reason without what differs: ids, numbers and quoted values. The name of a group is
    for `oyez dead redrive --group`.
    """
    project = Project.open()
    names = [project.settings(service).name] if service else list(project.config.services)
    found = run_async(group_letters(project, names, wanted=Wanted(**wanted), limit=limit))
    for gap in found.gaps:
        refuse(gap)
    if as_json:
        print_json(groups_as_value(found))
        return
    if not found.groups:
        print_line("no dead letters")
        return
    rows: list[list[Cell]] = [
        [
            name,
            each.group,
            each.letters,
            local_time(each.oldest),
            local_time(each.newest),
            each.type or "?",
            each.handler or Text("(unreadable)", style="yellow"),
            each.example,
            each.cause,
        ]
        for name, each in found.groups
    ]
    titles = "SERVICE GROUP LETTERS FIRST LAST TYPE HANDLER EXAMPLE CAUSE".split()
    print_table(titles, rows)
    if found.more:
        warn(f"there are more: --limit {limit * 10}")


@command.command("redrive")
@_service
@_ids
@click.option("--all", "every", is_flag=True, help="Redrive every dead letter of the service.")
@click.option("--key", help="Redrive those of this key.")
@click.option(
    "--group", callback=_named, help="Redrive those of this group: `oyez dead groups` names them."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--handler", help="Pass it to this handler instead of the one that gave up.")
@click.option(
    "--data",
    "file",
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True, path_type=Path),
    help="A file (- for standard input) whose JSON replaces the event's data.",
)
@click.option("--old", is_flag=True, help="Even if a duplicate could no longer be detected.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True, max=1_000_000),
    help="At most so many a second.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be handed to which handler.")
@why_option
def redrive_(
    service: str,
    ids: tuple[int, ...],
    every: bool,
    key: str | None,
    group: str | None,
    yes: bool,
    handler: str | None,
    file: Path | None,
    old: bool,
    rate: float | None,
    dry_run: bool,
    why: str,
) -> None:
    """Redrive dead letters: pass them to their handler again, with fresh attempts.

    Name them by their ids, or choose all of a key, of a group, or of the service. Ctrl-C stops
    between two of them; the same command goes on with the rest.
    """
    project = Project.open()
    project.settings(service)
    if sum((bool(ids), every, key is not None, group is not None)) != 1:
        raise ConfigurationError(
            "name the dead letters by their ids, or use --all, --key or --group"
        )
    if file is not None and len(ids) != 1:
        raise ConfigurationError("--data replaces the data of one dead letter: name one")
    data = None if file is None else _data(file)
    code = _code(project, service, handler)
    letters: Sequence[int] | Wanted = ids or Wanted(key=key, group=group)
    if dry_run:
        if code is None:
            raise ConfigurationError(f"--dry-run decodes with the code of {service}: mend it first")
        run_async(_preview(project, service, letters, code, handler, data, old))
        return
    if isinstance(letters, Wanted):
        count = run_async(_count(project, service, letters))
        if not count:
            print_line(f"{service} has no {'' if every else 'such '}dead letters")
            return
        _confirm(f"Redrive {count} dead letters of {service}?", yes)
    by, handlers = actor(why), None if code is None else handlers_of(code)

    async def act(store: Store, told: Told, stopped: asyncio.Event) -> Settled:
        return await redrive_letters(
            store,
            letters,
            project.ambient,
            by=by,
            handler=handler,
            handlers=handlers,
            data=data,
            old=old,
            rate=rate or 0.0,
            told=told,
            stopped=stopped,
        )

    run_async(_settle(project, service, "redriven", act, bar=not ids))


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


def _code(project: Project, service: str, handler: str | None) -> Service | None:
    """Return the service, of which ``handler`` is to be one; None if it can't be imported."""
    services, failed = project.services(service)
    if service not in services:
        warn(f"{service} can't be imported, so its handlers are unknown: {failed[service]}")
        return None
    names = handlers_of(services[service])
    if handler is not None and handler not in names:
        raise ConfigurationError(
            f"{service} has no handler {handler!r}{closest(handler, names)}; "
            f"there are: {', '.join(sorted(names)) or 'none'}"
        )
    return services[service]


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} There is no terminal to ask on: use --yes")
    if not click.confirm(question, err=True):
        raise OyezError("nothing was redriven")


async def _count(project: Project, service: str, wanted: Wanted) -> int:
    async with project.opened_store(service) as store:
        return await count_dead(store, wanted)


async def _preview(
    project: Project,
    service: str,
    letters: Sequence[int] | Wanted,
    code: Service,
    handler: str | None,
    data: bytes | None,
    old: bool,
) -> None:
    output, shown = console(), 0
    async with (
        project.opened_store(service) as store,
        aclosing(
            preview_letters(
                store, letters, code, project.ambient, handler=handler, data=data, old=old
            )
        ) as previews,
    ):
        async for each in previews:
            if shown == _PREVIEWS:
                warn(f"there are more; these are the first {_PREVIEWS}")
                break
            shown += 1
            if each.refused:
                line = f"{each.letter}  refused: {escape(each.refused)}"
                output.print(Text(line, style="yellow"))
                continue
            to = "published again" if each.handler == OUTBOX else f"→ {each.handler}"
            output.print(f"{each.letter}  {escape(to)}  {escape(each.event)}  {payload(each.data)}")
    if not shown:
        print_line(f"{service} has no such dead letters")


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
    by = actor(why)

    async def act(store: Store, told: Told, stopped: asyncio.Event) -> Settled:
        return await discard_letters(store, ids, project.ambient, by=by, told=told, stopped=stopped)

    run_async(_settle(project, service, "discarded", act, bar=False))


async def _settle(
    project: Project,
    service: str,
    word: str,
    act: Callable[[Store, Told, asyncio.Event], Awaitable[Settled]],
    *,
    bar: bool,
) -> None:
    """Settle letters, with a line for each or a bar; fail at the end if some were refused."""
    stopped = asyncio.Event()
    with stop_signals(stopped.set), _progress(bar) as advance:

        def told(step: Step) -> None:
            if not step.refused:
                advance(step, f"{word}: {service} {step.letter}")
            else:
                advance(step, "")

        async with project.opened_store(service) as store:
            settled = await act(store, told, stopped)
    if settled.stopped:
        warn(f"interrupted: {settled.done} are {word}; the same command goes on with the rest")
        raise click.Abort
    if settled.refusals == 1:
        raise NotRedriven(settled.refused[0].why)
    if settled.refusals:
        for each in settled.refused:
            warn(each.why)
        total = settled.done + settled.refusals
        raise OyezError(f"{settled.refusals} of {total} were refused")


@contextmanager
def _progress(bar: bool) -> Iterator[Callable[[Step, str], None]]:
    """Show a bar on a terminal; yields what is told each step, with a line to print or none."""
    errors = Console(stderr=True)
    if not (bar and errors.is_terminal):
        yield lambda step, line: print_line(line) if line else None
        return
    columns = (BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("redrive", total=None)
        done = 0

        def advance(step: Step, line: str) -> None:
            nonlocal done
            done += bool(line)
            progress.update(task, completed=step.count, total=step.total)

        yield advance
    print_line(f"redriven: {done}")
