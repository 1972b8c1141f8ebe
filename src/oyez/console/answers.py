"""What a service's admin port answers, as the types that both sides share.

A service encodes them as JSON and the console decodes them with the same types, so an answer that
is anything else is refused. Members that a newer service adds are left out.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from oyez.errors import InvalidEvent
from oyez.inspection.letters import Letter, WholeLetter
from oyez.runtime.audit import MAX_WHO, MAX_WHY, Actor


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


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """An act was carried out."""

    done: bool = True


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error, as ``application/problem+json``."""

    title: str
    status: int
    code: str = ""
    detail: str = ""
