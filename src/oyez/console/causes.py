"""Dead letters by their cause: what failed, where, and with which kind of error."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import msgspec

from oyez.inspection.letters import Letter

# What differs between two failures of one cause: ids, numbers, quoted values.
_PARTICULAR = re.compile(
    r"'[^']*'|\"[^\"]*\"|\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b(?=\w*\d)[0-9a-zA-Z_-]{12,}\b|\d+"
)
_ATTEMPTS = re.compile(r"^failed \d+ of \d+ attempts: ")
_LONGEST = 200


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """A group of dead letters that seem to have one cause."""

    id: str
    """Names the group in an address."""
    service: str
    handler: str
    type: str
    reason: str
    """The error without what is particular to one event."""
    letters: tuple[Letter, ...]
    """The oldest first."""


def by_cause(letters: Iterable[Letter]) -> list[Cause]:
    """Return the groups of these letters, the one with most letters first."""
    found: dict[tuple[str, str, str, str], list[Letter]] = {}
    for letter in letters:
        key = (letter.service, letter.handler, letter.type, general(letter.reason))
        found.setdefault(key, []).append(letter)
    groups = [
        Cause(
            id=hashlib.sha256("\0".join(key).encode("utf-8", "surrogatepass")).hexdigest()[:16],
            service=key[0],
            handler=key[1],
            type=key[2],
            reason=key[3],
            letters=tuple(each),
        )
        for key, each in found.items()
    ]
    return sorted(groups, key=lambda cause: (-len(cause.letters), cause.letters[0].time))


def general(reason: str) -> str:
    """Return the first line of a reason with ``…`` for what is particular to one event."""
    first = reason.partition("\n")[0][: 4 * _LONGEST]
    return _PARTICULAR.sub("…", _ATTEMPTS.sub("", first))[:_LONGEST]
