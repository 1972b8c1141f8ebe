"""A subscription: what its owner said, what it wants, and what became of its deliveries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from oyez.errors import InvalidEvent
from oyez.event import MAX_KEY
from oyez.ports import Row
from oyez.webhooks.signing import Secret, derive

State = Literal["active", "behind", "resuming", "paused", "disabled"]
"""``active``: what happens is delivered at once. ``behind``: the endpoint fails or is slow, so it
is held. ``resuming``: what was held is on its way. ``paused``, by its owner: it is held.
``disabled``, since it failed for too long: it is dropped."""
Ordering = Literal["key", "none"]

MAX_TYPES = 100
"""Patterns of a subscription."""
MAX_SIGNING = 4
"""Secrets of a subscription that sign at once."""


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``webhook``."""

    id: str
    principal: str
    url: str
    types: list[str]
    """Patterns: a type, or the beginning of types with ``*`` behind it."""
    description: str
    ordering: Ordering
    concurrency: int
    """The limit of requests at once, in each replica."""
    state: State
    secrets: list[Secret]
    created: float
    failing: float | None = None
    """When it began to fail; None if its last delivery succeeded."""
    failures: int = 0
    """Failures since the last delivery that succeeded."""
    dead: int = 0
    """Dead deliveries since the last one that succeeded."""

    @staticmethod
    def of(row: Row) -> Subscription:
        """Return a row as a subscription."""
        fields: dict[str, Any] = {name: row[name] for name in Subscription.__struct_fields__}
        fields["types"] = row["types"].split()
        fields["secrets"] = msgspec.json.decode(row["secrets"], type=list[Secret])
        return Subscription(**fields)

    def row(self) -> dict[str, Any]:
        """Return it as a row."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__struct_fields__}
        fields["types"] = " ".join(self.types)
        fields["secrets"] = msgspec.json.encode(self.secrets).decode()
        return fields

    def shown(self) -> dict[str, Any]:
        """Return it as its owner sees it: without its secrets."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__struct_fields__}
        del fields["principal"], fields["secrets"]
        if self.state in ("behind", "resuming"):
            fields["state"] = "active"
        return fields

    def signing(self, master: bytes, now: float) -> list[str]:
        """Return the secrets that sign at this time, the current one first."""
        return [derive(master, self.id, each) for each in self._valid(now)]

    def rotated(self, now: float, overlap: float) -> list[Secret]:
        """Return its secrets with a new one; the one so far signs for ``overlap`` more seconds.

        Raises InvalidEvent if too many sign already.
        """
        valid = self._valid(now)
        if len(valid) >= MAX_SIGNING:
            raise InvalidEvent(
                "$", f"{MAX_SIGNING} secrets sign at present: wait until the oldest has ended"
            )
        current = msgspec.structs.replace(valid[0], until=now + overlap)
        return [Secret(current.number + 1), current, *valid[1:]]

    def _valid(self, now: float) -> list[Secret]:
        return [each for each in self.secrets if each.until is None or each.until > now]


def matches(patterns: Iterable[str], kind: str) -> bool:
    """Return whether a type of events is among those that the patterns name."""
    return any(
        kind.startswith(each[:-1]) if each.endswith("*") else kind == each for each in patterns
    )


def check_types(patterns: Sequence[str], offered: Sequence[str]) -> None:
    """Raise InvalidEvent unless each pattern names at least one of the types that are offered."""
    if not 1 <= len(patterns) <= MAX_TYPES:
        raise InvalidEvent("$.types", f"expected 1 to {MAX_TYPES} types")
    for index, each in enumerate(patterns):
        wild = each.rstrip("*") if each.count("*") == 1 and each.endswith("*") else each
        if "*" in wild or not any(matches([each], kind) for kind in offered):
            raise InvalidEvent(
                f"$.types[{index}]",
                f"{each[:200]!r} names no event that is offered; offered: {', '.join(offered)}",
            )


def chain(subscription: str, key: str) -> str:
    """Return the key of deliveries to a subscription that wait for each other."""
    found = f"{subscription}/{key}"
    if len(found) <= MAX_KEY and found.isprintable():
        return found
    return f"{subscription}/{hashlib.sha256(key.encode(errors='replace')).hexdigest()}"
