"""The driver of systems without a scenario: events drawn from the schemas of their contracts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from oyez.contracts.schema import Schema, written
from oyez.event import EventType
from oyez.service import Service
from oyez.simulation.sim import Sim
from oyez.simulation.stage import Scenario
from oyez.timers import MADE_HERE

EVENTS = 12
"""The number of events that are published in a run, at most."""
KEYS = 3
"""The number of different texts of a field, so that events meet under one key."""


def driver(services: Sequence[Service]) -> Scenario:
    """Return a scenario that publishes what begins something in these services.

    That is what they publish on their HTTP side, and what they react to and none of them returns.
    """
    found = _first(services)

    async def scenario(sim: Sim) -> None:
        for _ in range(sim.random.randint(1, EVENTS)):
            if not found:
                return
            name, kind = sim.random.choice(found)
            event = draw(kind, sim.random)
            if event is not None:
                await sim.publish(event, service=name)
            await sim.sleep(sim.random.random() * 2)

    return scenario


def _first(services: Sequence[Service]) -> list[tuple[str, EventType]]:
    """Return the events that begin something, each with the service that publishes it."""
    handlers = [handler for service in services for handler in service.handlers]
    answers = {each.name for handler in handlers for each in handler.publishes} | MADE_HERE
    found: dict[str, tuple[str, EventType]] = {}
    for service in services:
        for kind in service.publishes:
            found.setdefault(kind.name, (service.name, kind))
    for handler in handlers:
        for kind in handler.events:
            found.setdefault(kind.name, ("outside", kind))
    return [
        found[name] for name in sorted(found) if name not in answers and found[name][1].to is None
    ]


def draw(kind: EventType, chance: random.Random) -> object | None:
    """Return an event of a type with drawn values; None for one whose schema can't be met."""
    schema = written(kind.cls)
    if schema is None:
        return None
    value = _value(schema, schema.get("$defs", {}), chance, 0)
    try:
        found: object = msgspec.convert(value, kind.cls, strict=False)
    except (msgspec.ValidationError, TypeError):
        return None
    return found


def _value(schema: Schema, defs: dict[str, Schema], chance: random.Random, depth: int) -> Any:
    if "$ref" in schema:
        return _value(defs[schema["$ref"].rpartition("/")[2]], defs, chance, depth + 1)
    if "enum" in schema:
        return chance.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return _value(chance.choice(schema["anyOf"]), defs, chance, depth)
    match schema.get("type"):
        case "object":
            return {
                name: _value(each, defs, chance, depth + 1)
                for name, each in schema.get("properties", {}).items()
            }
        case "array":
            if "prefixItems" in schema:
                return [_value(each, defs, chance, depth + 1) for each in schema["prefixItems"]]
            least = schema.get("minItems", 0)
            count = least + (chance.randrange(3) if depth < 6 else 0)
            return [
                _value(schema.get("items") or {}, defs, chance, depth + 1) for _ in range(count)
            ]
        case "integer":
            low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            return int(low) + chance.randrange(1, 100)
        case "number":
            least = schema.get("minimum", schema.get("exclusiveMinimum"))
            return float(0 if least is None else least) + 1 + chance.randrange(100)
        case "boolean":
            return chance.random() < 0.5
        case "null":
            return None
        case "string":
            return _text(schema, chance)
    return None


def _text(schema: Schema, chance: random.Random) -> str:
    number = 1 + chance.randrange(KEYS)
    match schema.get("format", schema.get("contentEncoding", "")):
        case "date-time":
            return f"2027-01-15T0{number}:00:00Z"
        case "date-time-local":
            return f"2027-01-15T0{number}:00:00"
        case "date":
            return f"2027-01-1{number}"
        case "uuid":
            return f"00000000-0000-4000-8000-00000000000{number}"
        case "decimal":
            return f"{number}.50"
        case "duration":
            return f"PT{number}S"
        case "base64":
            return "AA=="
    text = f"{number}".zfill(schema.get("minLength", 1))
    return text[: schema.get("maxLength", len(text))]
