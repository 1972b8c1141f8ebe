"""``oyez migrate``: makes the changes that the stores of services need, and exits."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import print_json, print_line, warn
from oyez.errors import OyezError
from oyez.inspection.form import escape
from oyez.project import Project
from oyez.runtime.migrations import Change, due, migrate
from oyez.service import Service


class Migrated(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one service's store."""

    service: str
    due: Sequence[Change] = ()
    """The changes that were due at the beginning."""
    error: str = ""
    """Why they could not be found or made."""


@click.command("migrate")
@click.argument("service", default="")
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if a change is due.")
@json_option
@click.pass_context
def command(context: click.Context, service: str, check: bool, as_json: bool) -> None:
    """Make Oyez's tables, run the migrations and make the views of SERVICE's store, then exit.

    By default those of all services. Safe while the services run, and several times at once: each
    change is made once, under the store's lock. `oyez run --no-migrate` starts only when nothing is
    due. Exits with 1 if a store can't be migrated.
    """
    project = Project.open()
    if service:
        project.settings(service)
    found = run_async(_migrate(project, service, check=check))
    if as_json:
        print_json({"ok": _done(found, check), "services": msgspec.to_builtins(found)})
    else:
        _print(found, check)
    if not _done(found, check):
        context.exit(1)


def _done(found: Sequence[Migrated], check: bool) -> bool:
    return not any(each.error or (check and each.due) for each in found)


def _print(found: Sequence[Migrated], check: bool) -> None:
    for each in found:
        if each.error:
            warn(f"{each.service}: {each.error}")
        elif each.due:
            changes = ", ".join(map(str, each.due))
            print_line(escape(f"{each.service}: {'due' if check else 'made'}: {changes}"))
        else:
            print_line(escape(f"{each.service}: nothing is due"))


async def _migrate(project: Project, only: str, *, check: bool) -> list[Migrated]:
    services, failed = project.services(*([only] if only else []))
    found = [Migrated(service=name, error=reason) for name, reason in failed.items()]
    found += [await _one(project, service, check=check) for service in services.values()]
    return sorted(found, key=lambda each: each.service)


async def _one(project: Project, service: Service, *, check: bool) -> Migrated:
    root, changes = project.config.root, list[Change]()
    store = project.store(service.name)
    try:
        changes = await due(store, service, root)
        if changes and not check:
            await migrate(store, service, root, project.ambient)
    except OyezError as error:
        return Migrated(service=service.name, due=changes, error=str(error))
    finally:
        await store.close()
    return Migrated(service=service.name, due=changes)
