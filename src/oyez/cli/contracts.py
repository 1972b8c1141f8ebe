"""``oyez contracts``: the contracts between services as files, what breaks them, what changed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.text import Text

from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import print_json, print_line, shorten, warn, write
from oyez.contracts.between import Change, Fault, check, diff, joining
from oyez.contracts.generate import Language, generate
from oyez.contracts.model import FOLDER, ServiceContract, encode
from oyez.errors import ConfigurationError, OyezError
from oyez.inspection.contracts import Style, committed, files, of_code, of_others
from oyez.inspection.deployed import (
    Snapshot,
    of_broker,
    of_file,
    of_url,
    said,
    say,
    write_snapshot,
)
from oyez.inspection.form import escape
from oyez.project import Project
from oyez.service import Service

_PRINTED = ("text", "json", "github")
_against = click.option(
    "--against",
    metavar="PLACE",
    help="A folder of contracts, a file or an https URL of them, git:REF, or broker: for what is "
    "deployed.",
)
_environment = click.option(
    "--environment",
    envvar="OYEZ_ENVIRONMENT",
    metavar="NAME",
    help="Where it is deployed, if one broker serves several.  [default: OYEZ_ENVIRONMENT]",
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
    type=click.Choice(["oyez", "jsonschema", "asyncapi", "html"]),
    default="oyez",
    help="What to write; oyez is what the other commands read, html is one page for people.",
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
    before = _place(project, against) if against is not None else {}
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
    before = _place(project, old)
    failed: dict[str, str] = {}
    if new is not None:
        after = _place(project, new)
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


@command.command("generate")
@click.argument("language", type=click.Choice(["typescript", "python"]))
@click.argument("services", metavar="[SERVICE]...", nargs=-1)
@click.option(
    "--from",
    "place",
    metavar="PLACE",
    help="A folder of contracts, a file or an https URL of them, git:REF, or broker:. Else the "
    "code of the project.",
)
@click.option(
    "--output",
    metavar="FOLDER",
    help="Where to write the modules, or - to print them.  [default: contracts/LANGUAGE]",
)
@json_option
@click.pass_context
def generate_(
    context: click.Context,
    language: Language,
    services: tuple[str, ...],
    place: str | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Write types of what services publish, for consumers in another language or repository.

    One module a service: TypeScript with an envelope and a function that reads each event, or
    Python with msgspec's Structs. With --from no project needs to be there.
    """
    failed: dict[str, str] = {}
    root = Path()
    if place is not None:
        contracts = _place(None, place)
    else:
        project = Project.open()
        root = project.config.root
        contracts, _, failed = _told(project)
    for name in services:
        if name not in contracts and name not in failed:
            raise ConfigurationError(
                f"there is no contract of {name!r}; there are: {', '.join(sorted(contracts))}"
            )
    wanted = services or sorted(name for name, each in contracts.items() if each.publishes)
    modules = [generate(language, contracts[name]) for name in wanted if name in contracts]
    for warning in (each for module in modules for each in module.warnings):
        warn(warning)
    if output == "-":
        for module in modules:
            write(module.text)
    else:
        folder = root / FOLDER / language if output is None else Path(output)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for module in modules:
                (folder / module.name).write_text(module.text)
        except OSError as error:
            raise ConfigurationError(f"{folder}: {error.strerror}") from error
        written = [str(folder / module.name) for module in modules]
        if as_json:
            warnings = [each for module in modules for each in module.warnings]
            print_json({"files": written, "warnings": warnings, "failed": failed})
        else:
            for file in written:
                print_line(escape(f"{file}: written"))
    if failed.keys() & {*(services or failed)}:
        context.exit(1)


@command.command("publish")
@click.argument("service")
@_environment
@json_option
def publish_(service: str, environment: str | None, as_json: bool) -> None:
    """Record on the broker that this build of a service is what is deployed.

    For the end of a pipeline, or a service that is no `oyez run`: what its replicas said before
    counts no longer. OYEZ_RELEASE names the build. The contract is that of the code, or of
    contracts/SERVICE.json where the service is none of this project.
    """
    project = Project.open()
    contract = _build(project, service)
    each = msgspec.structs.replace(said(contract), environment=environment or None)
    ambient = project.ambient

    async def record() -> None:
        named = service if service in project.config.services else ""
        async with project.opened_broker(named, create=True, group=False) as broker:
            await say(broker, each, ambient.new_id(), ambient.now())

    run_async(record())
    if as_json:
        print_json({"service": service, "release": each.release, "environment": each.environment})
    else:
        print_line(escape(f"{each}: recorded as deployed{_in(each.environment)}"))


@command.command("pull")
@click.option("--output", metavar="FILE", help="Where to write it.  [default: standard output]")
@click.option(
    "--folder",
    metavar="FOLDER",
    help="Write the newest contract of each service there instead, as SERVICE.json.",
)
@_environment
def pull_(output: str | None, folder: str | None, environment: str | None) -> None:
    """Write what is deployed, by the record on the broker, as one file: a snapshot.

    For pipelines that can't reach the broker: `can-deploy --from`, `check --against` and
    `diff` read it from a file or an https URL.
    """
    project = Project.open()
    snapshot = _deployed(project, "", environment)
    if not snapshot.deployed:
        raise OyezError(f"nothing is recorded as deployed{_in(environment)}")
    if folder is not None:
        written = {Path(folder) / f"{n}.json": encode(c) for n, c in snapshot.newest().items()}
    elif output is not None:
        written = {Path(output): write_snapshot(snapshot)}
    else:
        write(write_snapshot(snapshot).decode().rstrip())
        return
    for file, data in written.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        except OSError as error:
            raise ConfigurationError(f"{file}: {error.strerror}") from error
        print_line(escape(f"{file}: written"))


@command.command("can-deploy")
@click.argument("service")
@click.option(
    "--from",
    "place",
    metavar="PLACE",
    default="broker:",
    help="What is deployed: broker:URL, or a snapshot or contracts in a file, a folder or at an "
    "https URL.  [default: the system's broker]",
)
@_environment
@_style
@json_option
@click.pass_context
def can_deploy(
    context: click.Context,
    service: str,
    place: str,
    environment: str | None,
    style: str,
    as_json: bool,
) -> None:
    """Say whether this build of a service fits all that is deployed now.

    It must read what the others publish, and they must read what it publishes; several builds of
    a service may run at once. The exit code is 1 if it does not fit: who can't read what is named,
    with an event that shows it.
    """
    project = Project.open()
    contract = _build(project, service)
    if place.startswith("broker:"):
        snapshot = _deployed(project, place.removeprefix("broker:"), environment)
    else:
        snapshot = _snapshot(place)
    if not snapshot.deployed:
        raise OyezError(
            f"nothing is recorded as deployed{_in(environment)}, so it can't be said: start the "
            "services, or record them: oyez contracts publish SERVICE"
        )
    others = [each.contract for each in snapshot.deployed]
    faults = joining(contract, others, project.config.system.external)
    errors = _errors(faults)
    if style == "json" or as_json:
        told = [
            {
                "service": each.contract.service,
                "release": each.release,
                "replica": each.replica,
                "seen": each.seen or None,
            }
            for each in snapshot.deployed
        ]
        value = {"ok": not errors, "service": service, "deployed": told}
        print_json({**value, "faults": msgspec.to_builtins(faults)})
    elif style == "github":
        _annotate(faults)
    else:
        _print_faults(faults)
        names = ", ".join(sorted({str(each) for each in snapshot.deployed}))
        answer = Text("no", style="bold red") if errors else Text("yes", style="green")
        print_line(Text.assemble(answer, escape(f": {service}, beside {names}{_in(environment)}")))
    if errors:
        context.exit(1)


def _build(project: Project, service: str) -> ServiceContract:
    """The contract of the build that is here."""
    if service in project.config.services:
        contracts, _, failed = _told(project, service)
        if service in failed:
            raise OyezError(f"{service}: its contract can't be told without its code")
        return contracts[service]
    found = of_others(project).get(service)
    if found is None:
        raise ConfigurationError(
            f"there is no service {service!r} in {project.config.path}, and no "
            f"{FOLDER}/{service}.json"
        )
    return found


def _deployed(project: Project, url: str, environment: str | None) -> Snapshot:
    snapshot, unread = run_async(of_broker(project, url, environment or None))
    for each in unread:
        warn(each)
    return snapshot


def _snapshot(place: str) -> Snapshot:
    if "://" in place:
        return run_async(of_url(place))
    return of_file(place)


def _place(project: Project | None, place: str) -> dict[str, ServiceContract]:
    """The contracts at a place, by service, the newest of each."""
    if place.startswith("git:"):
        root = Path() if project is None else project.config.root
        return committed(root, place.removeprefix("git:"))
    if place.startswith("broker:"):
        found = _deployed(
            project or Project.open(),
            place.removeprefix("broker:"),
            os.environ.get("OYEZ_ENVIRONMENT"),
        )
        if not found.deployed:
            raise OyezError(f"{place} nothing is recorded as deployed")
        return found.newest()
    return _snapshot(place).newest()


def _in(environment: str | None) -> str:
    return f" in {environment}" if environment else ""


def _told(
    project: Project, *names: str
) -> tuple[dict[str, ServiceContract], dict[str, Service], dict[str, str]]:
    services, failed = project.services(*names)
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
