"""Who may send which events, and the records that become of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote

from oyez.ambient import Ambient
from oyez.cloudevents import data_field
from oyez.config import Config, SenderSettings
from oyez.contract import decode
from oyez.envelope import Envelope, format_time, is_json, parse_time
from oyez.errors import InvalidEvent, UnknownVersion
from oyez.event import MAX_DATA, MAX_KEY, EventType, describe, is_event
from oyez.gateway.ingest.quota import Quota, Quotas
from oyez.ports import Record
from oyez.principal import MAX_NAME, Principal
from oyez.transaction import TRACEPARENT

AHEAD = 86_400.0
"""An event whose time is more seconds than this in the future is refused."""

# They say for whom an event is, or where its data is: a stranger must not.
_OURS = frozenset(("recipient", "expires", "replayed", "dataref", "causationid"))
_SAFE = ":@!$&'()+,;=-._~"
_PROBLEM = 300
"""Characters of what is wrong with data, at most: a class may say it at any length."""


class NotAllowed(Exception):
    """The sender may not send this event; ``field`` and ``problem`` are as in InvalidEvent."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class _Sender(NamedTuple):
    """A sender of the configuration, with the classes of its events by type."""

    settings: SenderSettings
    stream: str
    kinds: Mapping[str, EventType]
    quotas: Quotas

    def admits(self, principal: Principal) -> bool:
        """Return whether it is one of its principals."""
        named = any(_matches(each, principal.name) for each in self.settings.principals)
        return named or not principal.scopes.isdisjoint(self.settings.scopes)


class Allowed(NamedTuple):
    """What a principal may send of one type: its class, if it has one, its sources, its stream."""

    kind: EventType | None
    sources: tuple[str, ...]
    stream: str
    quota: Quota | None

    def has(self, source: str) -> bool:
        """Return whether an event may have this source."""
        return any(
            source == each or (each.endswith("/*") and source.startswith(each[:-1]))
            for each in self.sources
        )


class Admission:
    """What the senders of the configuration may send.

    Raises ConfigurationError for a class that is no event, or can't be imported.
    """

    def __init__(self, config: Config, ambient: Ambient, senders: Iterable[SenderSettings]) -> None:
        self._system = config.system.name
        self._ambient = ambient
        self._services = frozenset(f"/{self._system}/{name}" for name in config.services)
        self._senders = [
            _Sender(
                each,
                f"{self._system}.{each.stream}",
                _kinds(config, each),
                Quotas(each, ambient),
            )
            for each in senders
        ]

    def of(self, principal: Principal) -> Pass | None:
        """Return what the principal may send; None if that is nothing at all.

        Whose name no event can have, because of its length or its letters, may send nothing.
        """
        name = principal.name
        senders = [each for each in self._senders if each.admits(principal)]
        if not senders or len(name) > MAX_NAME or not name.isprintable():
            return None
        return Pass(self._system, self._services, principal, senders, self._ambient)


class Pass:
    """What one principal may send."""

    def __init__(
        self,
        system: str,
        services: Collection[str],
        principal: Principal,
        senders: list[_Sender],
        ambient: Ambient,
    ) -> None:
        """``services`` are the sources of the system's services, which nobody else may have."""
        self._system = system
        self._services = services
        self._principal = principal
        self._senders = senders
        self._allowed: dict[str, Allowed | None] = {}
        self._auth = {"authtype": principal.authtype, "authid": principal.name}
        now = ambient.now()
        self._time = format_time(now)
        self._latest = datetime.fromtimestamp(now + AHEAD, UTC)

    def allowed(self, type_: str) -> Allowed | None:
        """Return how the principal may send events of a type; None if it may not."""
        if type_ not in self._allowed:
            self._allowed[type_] = self._look(type_)
        return self._allowed[type_]

    def record(self, envelope: Envelope, traceparent: str) -> Record:
        """Return the record of an event that may be sent, and is well-formed.

        ``traceparent`` is the request's, for an event that has none. Raises InvalidEvent, and
        NotAllowed where the principal may not send it.
        """
        allowed = self.allowed(envelope.type)
        if allowed is None:
            raise NotAllowed("type", f"you may not send {envelope.type[:200]!a}")
        if not allowed.has(envelope.source) or envelope.source in self._services:
            expected = ", ".join(allowed.sources)
            raise NotAllowed("source", f"expected {expected}, found {envelope.source[:200]!a}")
        headers = envelope.headers()
        if not _OURS.isdisjoint(headers):
            name = min(_OURS & headers.keys())
            raise InvalidEvent(name, "is set within the system alone: leave it out")
        if envelope.subject == "":
            raise InvalidEvent("subject", "is empty")
        if len(envelope.data) > MAX_DATA:
            problem = f"is {len(envelope.data)} bytes; at most {MAX_DATA} are allowed"
            raise InvalidEvent("data", problem)
        key = self._check_data(envelope, allowed.kind, headers)
        if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
            field = "subject" if envelope.partitionkey is None else "partitionkey"
            raise InvalidEvent(field, f"is the key: expected 1 to {MAX_KEY} printable characters")
        if envelope.time is None:
            headers["time"] = self._time
        elif parse_time(envelope.time) > self._latest:
            raise InvalidEvent("time", f"is more than {AHEAD / 3600:g} hours in the future")
        if not envelope.correlationid:
            headers["correlationid"] = envelope.id
        if envelope.traceparent is None or not TRACEPARENT.fullmatch(envelope.traceparent):
            headers["traceparent"] = traceparent
            headers.pop("tracestate", None)
        headers.update(self._auth)
        return Record(stream=allowed.stream, key=key, headers=headers, data=envelope.data)

    def _check_data(
        self, envelope: Envelope, kind: EventType | None, headers: dict[str, str]
    ) -> str | None:
        """Check that data fits the class of its type; return the event's key."""
        if kind is None:
            return envelope.key
        if not is_json(envelope.datacontenttype):
            raise InvalidEvent("datacontenttype", "expected application/json")
        try:
            event = decode(kind, envelope.data, envelope.dataschema)
            key = kind.key(event)
        except UnknownVersion as error:
            raise InvalidEvent("dataschema", f"{error}") from error
        except InvalidEvent as error:
            raise InvalidEvent(data_field(error.field), error.problem[:_PROBLEM]) from error
        headers["dataschema"] = kind.dataschema
        if key is None:
            return envelope.key
        if envelope.partitionkey not in (None, key):
            raise InvalidEvent("partitionkey", f"differs from the key, data.{kind.key_field}")
        headers["partitionkey"] = key
        headers.setdefault("subject", key)
        return key

    def _look(self, type_: str) -> Allowed | None:
        for sender in self._senders:
            kind = sender.kinds.get(type_)
            if kind is not None or any(_matches(each, type_) for each in sender.settings.types):
                name = self._principal.name
                return Allowed(kind, self._sources(sender), sender.stream, sender.quotas.of(name))
        return None

    def _sources(self, sender: _Sender) -> tuple[str, ...]:
        principal = self._principal
        name, subject = quote(principal.name, safe=_SAFE), quote(principal.subject, safe=_SAFE)
        own = f"/{self._system}/gateway/{name}"
        return tuple(
            each.replace("{principal}", name).replace("{subject}", subject)
            for each in sender.settings.sources or (own, f"{own}/*")
        )


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _kinds(config: Config, sender: SenderSettings) -> dict[str, EventType]:
    """Import the classes of a sender's events; return them by their types."""
    found: dict[str, EventType] = {}
    for place in sender.events:
        kind = _kind(config, f"gateway.ingest.senders.{sender.name}.events", place)
        if kind.name in found:
            key = f"gateway.ingest.senders.{sender.name}.events"
            raise config.error(key, "each type once", f'"{place}", which is {kind.name} again')
        found[kind.name] = kind
    return found


def _kind(config: Config, key: str, place: str) -> EventType:
    module, _, attribute = place.partition(":")
    root = str(config.root)
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        expected = f"a module below {root}"
        raise config.error(key, expected, f'"{place}": there is no module {error.name}') from error
    except AttributeError as error:
        raise config.error(key, "module:class", f'"{place}": {error}') from error
    if not is_event(found):
        raise config.error(key, "an event class", f'"{place}", which is none')
    kind = describe(found)
    if kind.to is not None:
        raise config.error(key, "an event class", f'"{place}", which is a command')
    return kind
