"""Rules on keyed state: how its events find a row, what a row holds, and what it held before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from oyez.config import Config
from oyez.errors import ConfigurationError
from oyez.event import EventType
from oyez.handler import Handler
from oyez.inspection.lint.contracts import OWN
from oyez.inspection.lint.shapes import Shape, shape_of, types_of, why_changed
from oyez.inspection.lint.system import (
    Found,
    Stored,
    System,
    fault,
    named,
    permitting,
    stored_by,
)
from oyez.personal import personal_fields
from oyez.saga import SagaType
from oyez.service import Service
from oyez.view import ViewType

Recorded = dict[str, dict[str, Shape]]
"""The shapes of keyed state, by service and kind."""


def _row_not_found(system: System) -> Found:
    for service in system.services.values():
        for kind in stored_by(service):
            keys = [
                (handler, event, field, types)
                for handler, event, field in _keys(kind)
                if (types := types_of(event, field))
            ]
            for handler, other, another, others in keys[1:]:
                _, one, field, types = keys[0]
                if types & others:
                    continue
                yield (
                    fault(
                        "E13",
                        "error",
                        handler,
                        f"{named(handler)} finds {kind.name} by {other.name}.{another}, which is "
                        f"{' or '.join(sorted(others))}; {one.name}.{field} is "
                        f"{' or '.join(sorted(types))}",
                        "give both one type: as texts they may differ, and lead to two rows",
                    ),
                    handler,
                )


def _keys(kind: Stored) -> list[tuple[Handler, EventType, str]]:
    """Return the fields by which events find a row of this kind."""
    found = []
    for handler in kind.users:
        (state,) = (each for each in handler.states if each.kind is kind.keyed)
        for event in handler.events:
            field = None if event.name.startswith(OWN) else kind.key_field(state, event)
            if field is not None:
                found.append((handler, event, field))
    return found


def _not_forgotten(system: System) -> Found:
    for service in system.services.values():
        handled = {kind.name for each in service.subscriptions for kind in each.events}
        if system.erasure in handled:
            continue
        for kind in stored_by(service):
            fields = personal_fields(kind.cls)
            if fields:
                wanted = system.erasure or "the event that system.erasure is to name"
                yield (
                    fault(
                        "E19",
                        "warning",
                        kind.cls,
                        f"{service.name} keeps personal data in {kind.name} "
                        f"({', '.join(fields)}), and does not handle {wanted}",
                        "handle it, and delete the row or empty these fields",
                    ),
                    permitting(kind.users, "E19"),
                )


def _shape_changed(system: System) -> Found:
    if system.recorded is None:
        return
    for service in system.services.values():
        recorded = system.recorded.get(service.name, {})
        declared = {each.name: each for each in stored_by(service)}
        for kind in declared.values():
            before, now = recorded.get(kind.name), _shape(kind)
            if before == now:
                continue
            problem = "" if before is None else _why_unfit(kind, before, now)
            remedy = "oyez topology --check --record"
            text = f"{kind.name} of {service.name} is not recorded as it is"
            if problem:
                text = (
                    f"{kind.name} of {service.name} was changed, and rows do not fit it: {problem}"
                )
                remedy = f"raise its version, and add @migrates({now.version})"
                if isinstance(kind.keyed, ViewType):
                    remedy = "raise its version: it is then filled again beside the old one"
            yield (
                fault("E20", "error" if problem else "warning", kind.cls, text, remedy),
                permitting(kind.users, "E20"),
            )
        for name in recorded.keys() - declared.keys():
            yield (
                fault(
                    "E20",
                    "warning",
                    None,
                    f"{name} of {service.name} is recorded, and no handler has it any more",
                    "keep the name of a kind with class(State, name=…), or drop it from the record "
                    "with oyez topology --check --record",
                ),
                None,
            )


def _why_unfit(kind: Stored, before: Shape, now: Shape) -> str:
    if now.version < before.version:
        return f"its version was {before.version} and is {now.version}"
    if now.version > before.version:
        return ""
    added = sorted(now.fields.keys() - before.fields.keys())
    if added and isinstance(kind.keyed, ViewType):
        return f"its table has no column for the field {added[0]}"
    return why_changed(before, now)


RULES: tuple[Callable[[System], Found], ...] = (
    _row_not_found,
    _not_forgotten,
    _shape_changed,
)


# -- the record ------------------------------------------------------------------------------------


def read_record(config: Config) -> Recorded | None:
    """Return the recorded shapes; None where there is no record. Raises ConfigurationError."""
    file = _file(config)
    try:
        return msgspec.json.decode(file.read_bytes(), type=Recorded)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"{file}: {error}: restore it, or remove it and run oyez topology --check --record"
        ) from error


def write_record(config: Config, services: Mapping[str, Service]) -> None:
    """Record the shapes of these services' keyed state; those of other services stay as they are.

    Raises ConfigurationError.
    """
    before = read_record(config) or {}
    known = {name: before[name] for name in config.services if name in before}
    record = known | {name: _shapes(each) for name, each in services.items()}
    file = _file(config)
    data = msgspec.json.encode(
        {name: each for name, each in record.items() if each}, order="sorted"
    )
    try:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(msgspec.json.format(data, indent=2) + b"\n")
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from error


def _file(config: Config) -> Path:
    return config.root / "contracts" / "state.json"


def _shapes(service: Service) -> dict[str, Shape]:
    return {each.name: _shape(each) for each in stored_by(service)}


def _shape(kind: Stored) -> Shape:
    steps = kind.keyed.steps if isinstance(kind.keyed, SagaType) else ()
    return shape_of(kind.cls, kind.version, steps)
