"""What a service's admin port answers, as the types that both sides share.

A service encodes them as JSON and the console decodes them with the same types, so an answer that
is anything else is refused. Members that a newer service adds are left out.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from oyez.errors import InvalidEvent
from oyez.inspection import explore
from oyez.inspection.installation import Lease, Migration, Setting
from oyez.inspection.letters import Letter, WholeLetter
from oyez.inspection.parked import ParkedEvent
from oyez.inspection.plan import Plan
from oyez.inspection.reactions import Node
from oyez.inspection.sagas import Instance, WholeInstance
from oyez.inspection.sagas import Place as SagaPlace
from oyez.inspection.schedule import Later
from oyez.inspection.standing import Standing
from oyez.inspection.views import ViewVersion
from oyez.inspection.witness import Positions
from oyez.runtime.audit import MAX_WHO, MAX_WHY, Act, Actor
from oyez.runtime.dead import ALL, Group, Wanted
from oyez.runtime.redrive import Preview, Refused

IDENTITY = 512
"""Characters of an identity that is looked for."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What one process has done since it was first asked. Rates are differences of two."""

    handled: dict[str, int]
    """Events by stream."""
    published: dict[str, int]
    """Events by stream."""
    retried: dict[str, int]
    """Failed attempts by handler."""
    dead: dict[str, int]
    """Events that became dead letters, by handler."""


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a service: its code, its health and its counts."""

    service: str
    owner: str
    publishes: tuple[str, ...]
    """Event types."""
    handlers: dict[str, tuple[str, ...]]
    """The event types of each handler."""
    reasons: tuple[str, ...]
    """Why it is not ready; empty when it is."""
    warnings: tuple[str, ...]
    counts: Counts


class LetterPage(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters by number, the oldest first."""

    letters: tuple[Letter, ...]
    more: bool


class LetterShown(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter with the beginning of its payload."""

    whole: WholeLetter
    size: int | None
    """The whole size of the payload in bytes; None without one."""
    acts: tuple[Act, ...]
    """What was done to it, the newest first."""
    handlers: tuple[str, ...]
    """What it may be handed to."""


class Stuck(msgspec.Struct, frozen=True, kw_only=True):
    """The instances of a saga that need a person."""

    saga: str
    count: int
    example: str
    """The key of one of them."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """What a service needs a person for."""

    groups: tuple[Group, ...]
    """Dead letters, the largest groups first."""
    more: bool
    """Whether there are more groups."""
    stuck: tuple[Stuck, ...]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Many dead letters that are being settled, or were, in a process of the service."""

    id: str
    act: Literal["redrive", "discard"]
    wanted: Wanted
    who: str
    why: str
    handler: str | None
    rate: float
    started: float
    """In seconds since 1970."""
    ended: float | None
    """None while it is under way."""
    total: int
    done: int
    refusals: int
    refused: tuple[Refused, ...]
    """The first of them."""
    stopped: bool
    """Whether somebody stopped it; it ends before its next letter."""
    failed: str
    """Why it broke off; else empty."""


class GroupPage(msgspec.Struct, frozen=True, kw_only=True):
    """Groups of dead letters, the largest first, and what is being done about them."""

    groups: tuple[Group, ...]
    more: bool
    jobs: tuple[Job, ...]
    """The newest first."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """An act of a person, whom the console has signed in; the service takes its word for it."""

    who: Annotated[str, msgspec.Meta(max_length=MAX_WHO)]
    why: Annotated[str, msgspec.Meta(max_length=MAX_WHY)] = ""

    def actor(self) -> Actor:
        """Return the person, for the audit. Raises InvalidEvent for a name that nobody can read."""
        if not (self.who.strip() and self.who.isprintable()):
            raise InvalidEvent("who", "is to be the name of a person, in characters that are seen")
        return Actor(who=self.who, via="console", why=self.why)


class Redrive(Asked, frozen=True, kw_only=True):
    """Asks to redrive a dead letter; see `oyez.runtime.dead.redrive`."""

    data: bytes | None = None
    handler: str | None = None
    old: bool = False


class Discard(Asked, frozen=True, kw_only=True):
    """Asks to discard a dead letter, for the reason ``why``."""


class Many(Asked, frozen=True, kw_only=True):
    """Asks to settle all dead letters that are wanted; see `oyez.runtime.redrive`."""

    act: Literal["redrive", "discard"]
    wanted: Wanted = ALL
    handler: str | None = None
    old: bool = False
    rate: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] = 0.0
    """The limit of letters in a second; 0 for none."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Asks what a redrive would do with a letter, or with those that are wanted."""

    letter: int | None = None
    wanted: Wanted = ALL
    handler: str | None = None
    data: bytes | None = None
    old: bool = False


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What a redrive would do."""

    previews: tuple[Preview, ...]
    """Of the first letters, each with the beginning of its data."""
    total: int
    """The number of letters that it would be done with."""
    handlers: tuple[str, ...]
    """What they may be handed to."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """An act was carried out."""

    done: bool = True


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error, as ``application/problem+json``."""

    title: str
    status: int
    code: str = ""
    detail: str = ""


class HandlerTimes(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of one handler in one process, within the time of `Timings`."""

    done: int
    retried: int
    dead: int
    """Calls by their outcome."""
    buckets: tuple[int, ...]
    """Calls by their duration: up to each of `oyez.console.timings.BOUNDS`, and longer ones."""
    line: tuple[int, ...]
    """Calls by slice of time, the newest last."""


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """How the handlers of one process did in the last minutes."""

    owner: str
    seconds: float
    """The time that was counted; 0 at the first question, from which on it counts."""
    handlers: dict[str, HandlerTimes]
    """Those that were called."""


class ParkedPage(msgspec.Struct, frozen=True, kw_only=True):
    """Parked events by row."""

    events: tuple[ParkedEvent, ...]
    more: bool


class ViewShown(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a view."""

    version: ViewVersion
    stale: float | None
    """The age in seconds of the oldest event that it lacks; None where that is not known."""


class ServiceShown(msgspec.Struct, frozen=True, kw_only=True):
    """What a service's store tells beside its lag and its letters."""

    leases: tuple[Lease, ...]
    later: tuple[Later, ...]
    """What it is to do later, the next first."""
    more_later: bool
    views: tuple[ViewShown, ...]
    migrations: tuple[Migration, ...]


class SettingsShown(msgspec.Struct, frozen=True, kw_only=True):
    """The settings in effect, without secrets."""

    settings: tuple[Setting, ...]


class Hear(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Asks what the history of a broker has; see `oyez.inspection.witness.hear`."""

    identity: str = ""
    correlation: str = ""
    after: Positions = ()


class TakePart(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a service's part in a journey; see `oyez.inspection.witness.take_part`."""

    events: tuple[Node, ...]
    awaited: dict[str, str]


class Streams(msgspec.Struct, frozen=True, kw_only=True):
    """The streams of a service's broker."""

    history: bool
    """Whether the broker keeps events that were handled."""
    partitions: dict[str, int]
    """By stream; empty without history."""


class Explore(explore.Wanted, frozen=True, kw_only=True, omit_defaults=True):
    """Asks for events of a stream, as the query of a URL; see `oyez.inspection.explore`."""

    stream: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    partition: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] | None = None
    oldest: bool = False
    at: Annotated[str, msgspec.Meta(max_length=4_096)] = ""
    """See `oyez.inspection.explore.at_text`."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Names one event, as the query of a URL."""

    stream: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    partition: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    position: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Standings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the instances of a service's sagas stand."""

    sagas: tuple[Standing, ...]


class InstancePage(msgspec.Struct, frozen=True, kw_only=True):
    """Instances of one saga."""

    instances: tuple[Instance, ...]
    more: SagaPlace | None
    """The place after which there are more."""


class InstanceShown(msgspec.Struct, frozen=True, kw_only=True):
    """An instance, its last transitions, and the beginning of its fields."""

    whole: WholeInstance | None = None
    """None where there is no instance of the key."""
    size: int | None = None
    """The whole size of the fields in bytes; None where they can't be shown."""
    plan: Plan | None = None
    """None for a saga that the running version does not declare."""


class SagaAct(Asked, frozen=True, kw_only=True):
    """Asks to retry or to abort an instance of a saga."""

    key: str


class Resolve(Asked, frozen=True, kw_only=True):
    """Asks to take a step of an instance for done, or else for undone."""

    key: str
    step: str
    done: bool


class ActPage(msgspec.Struct, frozen=True, kw_only=True):
    """Acts of persons on a service, the newest first."""

    acts: tuple[Act, ...]
    more: bool
