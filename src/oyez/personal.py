"""Personal data: which fields of keyed state tell something of a person.

::

    class Customer(State, key="customer_id"):
        name: Annotated[str, Personal] = ""

A service that keeps such a field has to forget it when it is told to: `oyez topology --check`
reports one that does not handle the event which ``system.erasure`` names.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec


class Personal:
    """Marks a field as personal data: ``name: Annotated[str, Personal]``."""


def personal_fields(cls: type) -> list[str]:
    """Return the paths of the fields so marked, of the class and of the classes within it."""
    return list(dict.fromkeys(_marked(cls, "", frozenset())))


def _marked(annotation: Any, path: str, within: frozenset[type]) -> list[str]:
    if get_origin(annotation) is Annotated:
        inside, *marks = get_args(annotation)
        if any(mark is Personal or isinstance(mark, Personal) for mark in marks):
            return [path]
        return _marked(inside, path, within)
    if not isinstance(annotation, type) or get_args(annotation):
        return [each for part in get_args(annotation) for each in _marked(part, path, within)]
    if annotation in within:
        return []
    within |= {annotation}
    return [
        each
        for name, kind in _fields(annotation).items()
        for each in _marked(kind, f"{path}.{name}" if path else name, within)
    ]


def _fields(cls: type) -> dict[str, Any]:
    if issubclass(cls, msgspec.Struct):
        return {field.name: field.type for field in msgspec.structs.fields(cls)}
    if hasattr(cls, "__dataclass_fields__") or hasattr(cls, "__attrs_attrs__"):
        return get_type_hints(cls, include_extras=True)
    return {}
