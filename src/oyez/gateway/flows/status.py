"""What is told of a flow: its state, its events, and the one that ended it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from oyez.config import Route
from oyez.gateway.flows.ident import Begun
from oyez.gateway.flows.index import Flow, FlowEvent

PATH = "/flows"
"""Where the status resources of flows are."""

_LEAST_PAUSE, _LONGEST_PAUSE = 1, 60

State = Literal["running", "done", "expired", "unknown"]
"""``expired``: it has not ended within the time that its route gives. ``unknown``: the brokers are
out of reach, or have not kept its events."""


class Ending(NamedTuple):
    """What a route says of the flows that it begins."""

    until: frozenset[str]
    """The types of the events that end them."""
    within: float
    """Seconds that they may take."""
    show: frozenset[str]
    """The fields of data that are told."""

    @classmethod
    def of(cls, route: Route) -> Ending:
        """Return what a route says."""
        return cls(frozenset(route.until), route.within, frozenset(route.show))


class Status:
    """What is known of a flow at a time."""

    def __init__(self, begun: Begun, ending: Ending, flow: Flow, system: str, now: float) -> None:
        self.events = flow.ordered()
        """By time."""
        self.end = next((each for each in self.events if each.type in ending.until), None)
        """What ended it; None while it runs."""
        self.expires = begun.made + ending.within
        """When it should have ended, in seconds since 1970."""
        self.state = _state(self, flow, now)
        self._begun = begun
        self._ending = ending
        self._cut = flow.cut
        self._age = now - begun.made
        self._prefix = f"/{system}/"

    @property
    def over(self) -> bool:
        """Whether nothing more is to be told."""
        return self.state in ("done", "expired")

    @property
    def url(self) -> str:
        """The path of its status resource."""
        return url_of(self._begun)

    @property
    def token(self) -> str:
        """The token of the events that ended it, for reading what they changed."""
        ended = {
            (each.source, each.type): f"{each.source};{each.id};{each.type}"
            for each in self.events
            if each.type in self._ending.until
        }
        return ", ".join(ended.values())

    @property
    def pause(self) -> int:
        """Seconds after which it is worth to ask again: a tenth of what it has taken so far."""
        return max(_LEAST_PAUSE, min(_LONGEST_PAUSE, int(self._age / 10)))

    def document(self) -> dict[str, Any]:
        """Return it as a value for JSON."""
        found: dict[str, Any] = {
            "id": self._begun.id,
            "state": self.state,
            "url": self.url,
            "events": self.told(self.events),
        }
        if self._cut:
            found["more"] = True
        if self.end is not None:
            found["end"] = self.told([self.end])[0]
            found["after"] = self.token
        return found

    def told(self, events: Iterable[FlowEvent]) -> list[dict[str, Any]]:
        """Return events as values for JSON, without their data but for what the route shows."""
        return [self._told(event) for event in events]

    def _told(self, event: FlowEvent) -> dict[str, Any]:
        found: dict[str, Any] = {
            "type": event.type,
            "time": event.time,
            "service": event.source.removeprefix(self._prefix),
            "subject": event.subject,
            "id": event.id,
        }
        shown = {name: event.fields[name] for name in event.fields if name in self._ending.show}
        return {**found, "data": shown} if shown else found


def url_of(begun: Begun) -> str:
    """Return the path of the status resource of a flow."""
    return f"{PATH}/{begun.id}"


def _state(status: Status, flow: Flow, now: float) -> State:
    if status.end is not None:
        return "done"
    if not flow.whole:
        return "unknown"
    return "expired" if now > status.expires else "running"
