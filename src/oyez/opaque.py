"""Events whose data nobody here looks into, as a program behind a bridge handles and makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import msgspec

from oyez.errors import InvalidEvent
from oyez.event import MAX_KEY, EventType, attach


class Opaque(msgspec.Struct, frozen=True):
    """An event by its encoded data; `opaque` makes a subclass for each type."""

    schema: ClassVar[Mapping[str, Any] | None] = None
    """The JSON Schema of the data, where a contract tells it."""
    data: bytes


class OpaqueType(EventType, frozen=True):
    """The description of such a type: its key is looked for in the data."""

    def key(self, event: object) -> str | None:
        """Return the event's key as text; see `EventType.key`."""
        if self.key_field is None:
            return None
        assert isinstance(event, Opaque)
        field = f"$.{self.key_field}"
        try:
            found = msgspec.json.decode(event.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidEvent("$", f"is not JSON: {error}") from error
        value = found.get(self.key_field) if isinstance(found, dict) else None
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise InvalidEvent(field, "is the key: expected a text or an integer")
        if not 1 <= len(str(value)) <= MAX_KEY:
            raise InvalidEvent(field, f"is the key: expected 1 to {MAX_KEY} characters")
        return str(value)


def opaque(
    name: str,
    *,
    version: int = 1,
    key: str | None = None,
    schema: Mapping[str, Any] | None = None,
) -> type[Opaque]:
    """Return the class of events of a type, up to this version; ``key`` is a field of the data."""
    made = msgspec.defstruct("Opaque", [], bases=(Opaque,), module=__name__, frozen=True)
    cls = cast(type[Opaque], made)
    cls.schema = schema
    attach(cls, OpaqueType(cls, name, version, key, None, _data, cls, ()))
    return cls


def is_unknown(kind: EventType) -> bool:
    """Return whether nothing is known of a type's data: it is opaque, without a contract."""
    return isinstance(kind, OpaqueType) and kind.cls.schema is None


def _data(event: Opaque) -> bytes:
    return event.data
