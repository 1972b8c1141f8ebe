"""The lint of a whole system: faults between services that no service can see alone.

A pure function of the services' declarations: no source is parsed, no service runs. Each rule has a
code, by which a handler permits what is meant to be so: ``@service.on(…, allow={"E14": "why"})``.
The guide has them all.

Types that come from outside, or that are only handled there, are named in ``system.external``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from oyez.inspection.lint import events, handlers, keyed, sagas
from oyez.inspection.lint.live import Standing, check_live
from oyez.inspection.lint.system import Fault, System, fault, named
from oyez.project import Project
from oyez.service import Service

CODES = {
    "E00": "a permit that is not needed, or that gives no reason",
    "E01": "an event that nobody handles",
    "E02": "an event that is handled and that nobody publishes",
    "E03": "a command that other handlers than one of its service handle, or none",
    "E04": "an event that two services publish",
    "E05": "publisher and handler order an event by different keys",
    "E06": "a handler keeps the order of events that have no key",
    "E08": "a command that may overtake the one that it is to undo",
    "E09": "a step of a saga that can't be undone, or that is not to be",
    "E10": "a step that is given up before its receiver has",
    "E11": "an answer that the service which is asked does not publish",
    "E12": "a saga with no way to an end",
    "E13": "events find one row of keyed state by values of different types",
    "E14": "events that lead to themselves",
    "E15": "what is outside of the service is called within a transaction",
    "E16": "a handler outside of a transaction that can't give its calls an idempotency key",
    "E17": "retries that go on for longer than duplicates are recognised",
    "E18": "a handler that can't read every event of its publisher",
    "E19": "personal data that a service keeps, and is not told to forget",
    "E20": "keyed state whose rows no longer fit it",
    "E21": "a service is to read events from the beginning that are deleted",
    "E22": "numbers of partitions that don't suit the state or the replicas",
    "E23": "what waits for a handler that is gone, and sagas that are stuck",
}
"""What each rule reports."""
LIVE = ("E21", "E22", "E23")
"""The rules that need the running system."""

_RULES = (*events.RULES, *handlers.RULES, *keyed.RULES, *sagas.RULES)


def lint(
    project: Project,
    services: Mapping[str, Service],
    standing: Mapping[str, Standing] | None = None,
) -> list[Fault]:
    """Return the faults between the imported services of a project.

    With ``standing``, from `look`, also those of the running system. Files are relative to the
    project's folder. Raises ConfigurationError for a record of keyed state that can't be read.
    """
    config = project.config
    system = System(
        services,
        name=config.system.name,
        external=config.system.external,
        erasure=config.system.erasure,
        outward=config.lint.outward if config.lint is not None else (),
        recorded=keyed.read_record(config),
    )
    found = check(system, standing)
    root = config.root.resolve()
    return [_relative(each, root) for each in found]


def check(system: System, standing: Mapping[str, Standing] | None = None) -> list[Fault]:
    """Return the faults of a system, in the order of their codes; see `lint`."""
    faults: list[Fault] = []
    permits = {
        (service.name, handler.name, code): (handler, why)
        for service, handler in system.handlers
        for code, why in handler.allow.items()
        if standing is not None or code not in LIVE
    }
    used: set[tuple[str, str, str]] = set()
    every = [found for rule in _RULES for found in rule(system)]
    every += check_live(system, standing) if standing is not None else ()
    for found, handler in every:
        permit = None if handler is None else (handler.service, handler.name, found.code)
        if permit in permits:
            used.add(permit)
        else:
            faults.append(found)
    for permit, (handler, why) in permits.items():
        if permit not in used or not why.strip():
            problem = "is not needed" if permit not in used else "gives no reason"
            faults.append(
                fault(
                    "E00",
                    "warning",
                    handler,
                    f"{named(handler)}: the permit of {permit[2]} {problem}",
                    "remove it" if permit not in used else "state why it is meant to be so",
                )
            )
    return sorted(faults, key=lambda each: (each.code, each.file, each.line, each.text))


def as_value(faults: Iterable[Fault], failed: Mapping[str, str]) -> dict[str, Any]:
    """Return the faults as a value for JSON; ``failed`` are services that can't be imported."""
    listed = [msgspec.structs.asdict(each) for each in faults]
    return {
        "ok": not failed and all(each["level"] != "error" for each in listed),
        "failed": dict(failed),
        "faults": listed,
    }


def _relative(fault: Fault, root: Path) -> Fault:
    file = Path(fault.file)
    if fault.file and file.is_relative_to(root):
        return msgspec.structs.replace(fault, file=str(file.relative_to(root)))
    return fault
