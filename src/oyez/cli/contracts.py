"""``oyez contracts``: the contracts between services as files, what breaks them, what changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
import msgspec
from rich.text import Text

from oyez.cli.invocation import json_option
from oyez.cli.printing import print_json, print_line, shorten, warn, write
from oyez.contracts.between import Change, Fault, check, diff
from oyez.contracts.model import FOLDER, ServiceContract
from oyez.errors import ConfigurationError
from oyez.inspection.contracts import Style, files, of_code, of_others, read_place
from oyez.inspection.form import escape
from oyez.project import Project
from oyez.service import Service

_PRINTED = ("text", "json", "github")
_against = click.option(
    "--against",
    metavar="PLACE",
    help="A folder of contracts, a file of one, or git:REF.",
)
_style = click.option(
    "--format", "style", type=click.Choice(_PRINTED), default="text", help="How to print."
)


@click.group("contracts")
def command() -> None:
    """The contracts between services: files of them, what breaks them, what changed.

    They are read from the services' code; no service needs to run.
    """


@command.command("export")
@click.argument("services", metavar="[SERVICE]...", nargs=-1)
@click.option(
    "--format",
    "style",
    type=click.Choice(["oyez", "jsonschema", "asyncapi"]),
    default="oyez",
    help="What to write; oyez is what the other commands read.",
)
@click.option("--check", "only_check", is_flag=True, help="Write nothing; 1 if a file is stale.")
@json_option
@click.pass_context
def export(
    context: click.Context,
    services: tuple[str, ...],
    style: Style,
    only_check: bool,
    as_json: bool,
) -> None:
    """Write the contracts of services, by default of all, to the folder contracts."""
    project = Project.open()
    for name in services:
        project.settings(name)
    contracts, _, failed = _told(project)
    if "state" in contracts:
        raise ConfigurationError(
            f"{FOLDER}/state.json is the record of keyed state: a service named state has no "
            "contract there: rename it"
        )
    chosen = {n: each for n, each in contracts.items() if not services or n in services}
    wanted = files(style, chosen, of_others(project) | contracts)
    folder = project.config.root / FOLDER
    stale = []
    for name, data in wanted.items():
        file = folder / name
        try:
            if file.exists() and file.read_bytes() == data:
                continue
            stale.append(name)
            if not only_check:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        except OSError as error:
            raise ConfigurationError(f"{file}: {error.strerror}") from error
    if as_json:
        print_json({"files": sorted(wanted), "changed": stale, "failed": failed})
    else:
        word = "stale" if only_check else "written"
        for name in wanted:
            state = word if name in stale else "unchanged"
            print_line(escape(f"{FOLDER}/{name}: {state}"))
        if only_check and stale:
            warn("write and commit them: oyez contracts export")
    if failed or (only_check and stale):
        context.exit(1)


@command.command("check")
@_against
@_style
@json_option
@click.pass_context
def check_(context: click.Context, against: str | None, style: str, as_json: bool) -> None:
    """Check that the services can read what the others publish.

    They are checked against each other, against the services whose contracts others have put into
    the folder contracts, and against those at a place. What changed since that place breaks if it
    moves the key of a type, or if no order of deployment is right.
    """
    project = Project.open()
    contracts, services, failed = _told(project)
    before = read_place(project, against) if against is not None else {}
    system = before | of_others(project) | contracts
    faults = check(system, external=project.config.system.external, services=services)
    known = {_place_of(each) for each in faults}
    for change in diff(before, system) if before else ():
        if change.verdict == "breaks":
            faults += [f for f in change.faults if f.level == "error" and _place_of(f) not in known]
    if style == "json" or as_json:
        value = {"ok": not failed and not _errors(faults), "failed": failed}
        print_json({**value, "faults": msgspec.to_builtins(faults)})
    elif style == "github":
        _annotate(faults)
    else:
        _print_faults(faults)
        count = len(_errors(faults))
        print_line(f"{len(system)} services, {count} {'fault' if count == 1 else 'faults'}")
    if failed or _errors(faults):
        context.exit(1)


@command.command("diff")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="[NEW]", required=False)
@_style
@json_option
@click.pass_context
def diff_(context: click.Context, old: str, new: str | None, style: str, as_json: bool) -> None:
    """Show what changed between two places, and in which order to deploy it.

    Without NEW it is the code of the project, with the services at OLD that are not in it. The exit
    code is 1 if the change breaks a service in any order.
    """
    project = Project.open()
    before = read_place(project, old)
    failed: dict[str, str] = {}
    if new is not None:
        after = read_place(project, new)
    else:
        contracts, _, failed = _told(project)
        gone = {name for name in before if old.startswith("git:")}
        kept = {name: each for name, each in before.items() if name not in gone}
        after = kept | of_others(project) | contracts
    changes = diff(before, after)
    if style == "json" or as_json:
        print_json({"changes": msgspec.to_builtins(changes), "failed": failed})
    elif style == "github":
        _annotate([fault for each in changes for fault in each.faults])
    else:
        _print_changes(changes)
    if failed or any(each.verdict == "breaks" for each in changes):
        context.exit(1)


def _told(
    project: Project,
) -> tuple[dict[str, ServiceContract], dict[str, Service], dict[str, str]]:
    services, failed = project.services()
    for name, reason in failed.items():
        warn(f"{name} can't be imported and is left out: {reason}")
    return of_code(project, services), services, failed


def _errors(faults: Iterable[Fault]) -> list[Fault]:
    return [each for each in faults if each.level == "error"]


def _place_of(fault: Fault) -> tuple[Any, ...]:
    return fault.rule, fault.type, fault.publisher, fault.reader, fault.path


def _print_faults(faults: Iterable[Fault], indent: str = "") -> None:
    for each in faults:
        style = "bold red" if each.level == "error" else "yellow"
        place = "" if each.path == "$" else f"{each.path.removeprefix('$.')}: "
        who = _reader(each)
        text = f" {each.type}: {who}{place}{each.reason} → {each.remedy}"
        print_line(Text.assemble(indent, (each.rule, style), escape(text)))
        if each.witness is not None:
            shown = escape(shorten(each.witness, 2_000))
            print_line(f"{indent}  this event would become a dead letter: {shown}")


def _print_changes(changes: Iterable[Change]) -> None:
    none = True
    for each in changes:
        none = False
        who = "" if each.reader is None else f" → {each.reader} ({', '.join(each.handlers)})"
        style = _STYLES[each.verdict]
        head = escape(f"{each.publisher} {each.type}{who}: ")
        print_line(Text.assemble(head, (each.verdict, style)))
        for line in each.changes:
            print_line(escape(f"  {line}"))
        _print_faults(each.faults, "  ")
    if none:
        print_line("nothing changed")


def _annotate(faults: Iterable[Fault]) -> None:
    for each in faults:
        text = f"{each.type}: {_reader(each)}{each.path}: {each.reason}: {each.remedy}"
        if each.witness is not None:
            text += f"\nthis event would become a dead letter: {shorten(each.witness, 2_000)}"
        safe = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        write(f"::{each.level} title={each.rule}::{safe}")


def _reader(fault: Fault) -> str:
    if fault.reader is None:
        return "" if fault.publisher is None else f"{fault.publisher}: "
    names = ", ".join(f"{fault.reader}.{each}" for each in fault.handlers) or fault.reader
    return f"{names} can't read it from {fault.publisher}: " if fault.publisher else f"{names}: "


_STYLES = {
    "fine": "green",
    "deploy consumer first": "yellow",
    "deploy publisher first": "yellow",
    "breaks": "bold red",
}
