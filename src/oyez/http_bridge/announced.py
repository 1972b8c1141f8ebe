"""Events that a program sends to be published: checked against what its service may publish."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from oyez.cloudevents import Fields, open_arrived, read_forms
from oyez.envelope import Envelope, is_json
from oyez.errors import InvalidEvent, NotEvents
from oyez.event import MAX_DATA, MAX_KEY, EventType
from oyez.opaque import Opaque

MOST = 1_000
"""The limit of events in one body."""
MAX_BODY = 4 * 1_048_576
"""The limit of its bytes."""

# What only the system itself says of an event.
_OURS = ("recipient", "expires", "replayed", "dataref", "authid", "authtype")


class Announced(NamedTuple):
    """An event to be published."""

    event: Opaque
    key: str | None
    cause: str | None
    """The id of the event that it results from, if it says so."""


class Publishing:
    """What a service may publish."""

    def __init__(self, kinds: Iterable[EventType]) -> None:
        self._kinds = {kind.name: kind for kind in kinds}

    def read(self, fields: Fields, body: bytes) -> list[Announced]:
        """Return the events of a request or an answer, in their order.

        Raises `oyez.cloudevents.NotEvents`, and InvalidEvent, which names the event, if there are
        several, and its field.
        """
        arrived = read_forms(fields, body)
        if not arrived:
            raise NotEvents(422, "no_events", "there is no event in it")
        if len(arrived) > MOST:
            detail = f"there are {len(arrived)} events; at most {MOST} are allowed"
            raise NotEvents(413, "too_many_events", detail)
        found = []
        for index, each in enumerate(arrived):
            try:
                found.append(self._checked(open_arrived(each)))
            except InvalidEvent as error:
                place = f"[{index}]." if len(arrived) > 1 else ""
                raise type(error)(f"{place}{error.field}", error.problem) from error
        return found

    def _checked(self, envelope: Envelope) -> Announced:
        kind = self._kinds.get(envelope.type)
        if kind is None:
            allowed = ", ".join(sorted(self._kinds)) or "none"
            problem = f"{envelope.type[:200]!a} may not be published; publishes has: {allowed}"
            raise InvalidEvent("type", problem)
        for name in _OURS:
            if getattr(envelope, name) is not None:
                raise InvalidEvent(name, "is set within the system alone: leave it out")
        for name in envelope.extensions:
            raise InvalidEvent(name, "is an extension, which is not carried: leave it out")
        if envelope.dataschema not in (None, kind.dataschema):
            raise InvalidEvent("dataschema", f"expected {kind.dataschema}, or none")
        if not is_json(envelope.datacontenttype):
            raise InvalidEvent("datacontenttype", "expected application/json")
        if not envelope.data:
            raise InvalidEvent("data", "is missing: expected JSON")
        if len(envelope.data) > MAX_DATA:
            problem = f"is {len(envelope.data)} bytes; at most {MAX_DATA} are allowed"
            raise InvalidEvent("data", problem)
        event = kind.cls(envelope.data)
        return Announced(event, _key(kind, event, envelope), envelope.causationid)


def _key(kind: EventType, event: Opaque, envelope: Envelope) -> str | None:
    name = "subject" if envelope.subject is not None else "partitionkey"
    given = envelope.subject if envelope.subject is not None else envelope.partitionkey
    if envelope.partitionkey not in (None, given):
        raise InvalidEvent("partitionkey", "differs from subject: both are the key")
    if kind.key_field is not None:
        try:
            key = kind.key(event)
        except InvalidEvent as error:
            raise InvalidEvent(f"data{error.field.removeprefix('$')}", error.problem) from error
        if given not in (None, key):
            raise InvalidEvent(name, f"differs from the key, data.{kind.key_field}")
        given = key
    if given is not None and not (0 < len(given) <= MAX_KEY and given.isprintable()):
        raise InvalidEvent(name, f"is the key: expected 1 to {MAX_KEY} printable characters")
    return given
