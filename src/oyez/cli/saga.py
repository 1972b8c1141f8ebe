"""``oyez saga``: the instances of sagas: listed, shown, and set going again."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import click
import msgspec
from rich.text import Text

from oyez.cli.gaps import refuse
from oyez.cli.invocation import actor, json_option, run_async, why_option
from oyez.cli.printing import (
    Cell,
    console,
    local_time,
    print_json,
    print_line,
    print_table,
    warn,
    write,
)
from oyez.errors import ConfigurationError
from oyez.inspection.drawing import saga_mermaid, saga_svg
from oyez.inspection.form import escape
from oyez.inspection.plan import plan_of
from oyez.inspection.sagas import (
    STATUSES,
    History,
    Instance,
    WholeInstance,
    as_value,
    export,
    find_instance,
    list_instances,
    whole_as_value,
)
from oyez.project import Project
from oyez.runtime.sagas import Sagas
from oyez.saga import Progress, SagaType
from oyez.transaction import Announcer

_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_AGE = re.compile(r"(\d{1,9})([smhd])")

_key = click.argument("key")
_service = click.option("--service", default="", help="The service, if several know the key.")
_saga = click.option("--saga", default="", help="The saga, if several have the key.")


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> float:
    match = _AGE.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value}: expected a number and a unit: 30s, 10m, 1h or 2d")
    return int(match[1]) * _UNITS[match[2]]


@click.group("saga")
def command() -> None:
    """List, show, retry, abort or resolve instances of sagas.

    These commands open the service's store themselves, whether the service runs or not.
    """


@command.command("list")
@click.argument("service", required=False)
@click.option("--stuck", is_flag=True, help="Only those that need a person.")
@click.option("--status", type=click.Choice(STATUSES), help="Only those of this status.")
@click.option(
    "--older", callback=_seconds, default="0s", help="Only those unchanged for so long: 1h."
)
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=100, help="Per service, oldest first."
)
@json_option
def list_(
    service: str | None, stuck: bool, status: str | None, older: float, limit: int, as_json: bool
) -> None:
    """List the instances that have not ended, of one service or of all."""
    if stuck and status not in (None, "stuck"):
        raise ConfigurationError("--stuck is --status stuck: leave out one of them")
    project = Project.open()
    names = [project.settings(service).name] if service else list(project.config.services)
    wanted = "stuck" if stuck else status or ""
    found = run_async(list_instances(project, names, status=wanted, older=older, limit=limit))
    for gap in found.gaps:
        refuse(gap)
    if as_json:
        print_json({"sagas": [as_value(each) for each in found.instances], "more": found.more})
        return
    if not found.instances:
        print_line("no sagas")
        return
    rows: list[list[Cell]] = [
        [
            each.service,
            each.saga,
            each.key,
            _status(each.status),
            "-" if each.started is None else local_time(each.started),
            local_time(each.changed),
            each.step or None,
        ]
        for each in found.instances
    ]
    print_table(["SERVICE", "SAGA", "KEY", "STATUS", "STARTED", "CHANGED", "WAITS FOR"], rows)
    if found.more:
        warn(f"there are more: --limit {limit * 10}")


@command.command("show")
@_key
@_service
@_saga
@json_option
def show(key: str, service: str, saga: str, as_json: bool) -> None:
    """Show one instance: its steps, its timers and every transition."""
    project = Project.open()
    whole = run_async(find_instance(project, key, service=service, saga=saga))
    if as_json:
        print_json(whole_as_value(whole))
    else:
        _print(whole)


def _print(whole: WholeInstance) -> None:
    output = console()
    instance, progress = whole.instance, whole.progress
    output.print(
        Text(f"{instance.saga} {escape(instance.key)} of {instance.service}", style="bold")
    )
    facts: dict[str, str | Text] = {
        "status": _status(instance.status),
        "end": progress.end,
        "stuck": progress.stuck,
        "failed": "" if progress.failure is None else _failure(progress),
        "started": "" if instance.started is None else local_time(instance.started),
        "ended": "" if instance.ended is None else local_time(instance.ended),
        "flow": instance.correlationid or "",
    }
    for name, value in facts.items():
        if value:
            shown = value if isinstance(value, Text) else Text(escape(value))
            output.print(Text.assemble((f"  {name:<8} ", "dim"), shown))
    output.print(Text("steps", style="bold"))
    for name, asked in progress.steps.items():
        line = f"  {name}  {asked.stage.value}  asked {local_time(asked.at)}"
        if asked.tries > 1:
            line += f", {asked.tries} times"
        if asked.timer:
            line += f", waits until {local_time(asked.due)}"
        output.print(escape(line) + (f"  {escape(asked.command)}" if asked.command else ""))
    if not progress.steps:
        output.print("  none")
    if progress.early:
        output.print(Text("waiting for the start", style="bold"))
        for early in progress.early:
            output.print(
                f"  {local_time(early.at)}  {escape(early.headers.get('type', '?'))}  "
                f"{escape(early.headers.get('id', '?'))}"
            )
    if whole.timers:
        output.print(Text("timers", style="bold"))
        for name, due in whole.timers:
            output.print(f"  {local_time(due)}  {escape(name.partition('#')[0])}")
    output.print(Text("transitions", style="bold"))
    for entry in whole.log:
        output.print(f"  {entry.number}  {local_time(entry.at)}  {escape(entry.type)}")
        for effect in entry.effects:
            output.print(Text(f"       {escape(effect)}", style="dim"))


def _failure(progress: Progress) -> str:
    failure = progress.failure
    assert failure is not None
    return f"{failure.step}: {failure.reason}" if failure.step else failure.reason


def _status(status: str) -> Text:
    return Text(status, style={"stuck": "red", "undoing": "yellow"}.get(status, ""))


@command.command("retry")
@_key
@why_option
@_service
@_saga
def retry_(key: str, why: str, service: str, saga: str) -> None:
    """Ask again what an instance waits for; one that is stuck goes on."""
    _act(key, service, saga, why, lambda sagas, name: sagas.retry(name, key))


@command.command("abort")
@_key
@click.option("--why", required=True, help="The reason; the saga's end may tell it.")
@_service
@_saga
def abort_(key: str, why: str, service: str, saga: str) -> None:
    """Undo an instance, as if a step had failed."""
    _said(why)
    _act(key, service, saga, why, lambda sagas, name: sagas.abort(name, key))


@command.command("resolve")
@_key
@click.argument("step")
@click.argument("outcome", type=click.Choice(["done", "undone"]))
@click.option("--why", required=True, help="How you know; kept in its log.")
@_service
@_saga
def resolve_(key: str, step: str, outcome: str, why: str, service: str, saga: str) -> None:
    """Take a step for done, or for undone, as you have found it to be."""
    _said(why)
    done = outcome == "done"
    _act(key, service, saga, why, lambda sagas, name: sagas.resolve(name, key, step, done=done))


@command.command("export")
@_key
@_service
@_saga
def export_(key: str, service: str, saga: str) -> None:
    """Print the history of an instance as JSON, for a test with assert_replays."""
    project = Project.open()

    async def work() -> History:
        whole = await find_instance(project, key, service=service, saga=saga)
        return await export(project, whole)

    write(msgspec.json.format(msgspec.json.encode(run_async(work()))).decode())


@command.command("draw")
@click.argument("name")
@click.option(
    "--format",
    "style",
    type=click.Choice(["mermaid", "svg"]),
    default="mermaid",
    help="A Mermaid flowchart, or an SVG picture.",
)
def draw(name: str, style: str) -> None:
    """Draw a saga's steps, undos and ends, from its class."""
    project = Project.open()
    services, failed = project.services()
    known = {
        kind.name: kind
        for service in services.values()
        for kind in service.kinds.values()
        if isinstance(kind, SagaType)
    }
    if name not in known:
        for service, problem in failed.items():
            warn(f"{service} can't be imported: {problem}")
        names = ", ".join(sorted(known)) or "none"
        raise ConfigurationError(f"there is no saga {name!r}; there are: {names}")
    plan = plan_of(known[name])
    write(saga_svg(plan) if style == "svg" else saga_mermaid(plan).rstrip())


def _said(why: str) -> None:
    if not why.strip():
        raise ConfigurationError("--why: state the reason")


def _act(
    key: str,
    service: str,
    saga: str,
    why: str,
    act: Callable[[Sagas, str], Awaitable[Progress]],
) -> None:
    project = Project.open()
    by = actor(why)

    async def work() -> tuple[Instance, Progress]:
        instance = (await find_instance(project, key, service=service, saga=saga)).instance
        code, name = project.service(instance.service), project.config.system.name
        announcer = Announcer(name, instance.service, project.ambient)
        async with project.opened_store(instance.service) as store:
            return instance, await act(Sagas(store, code, announcer, by=by), instance.saga)

    instance, progress = run_async(work())
    waits = f", waits for {progress.waits_for}" if progress.waits_for else ""
    print_line(escape(f"{instance.service} {instance.saga} {key}: {progress.status.value}{waits}"))
