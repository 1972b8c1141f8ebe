"""The cause of a dead letter: what its reason has in common with those of other letters.

A thousand orders that fail in one way have a thousand reasons: each names its order. Masked, they
are one text, and the letters of one handler, type and text are one group: read, cured and redriven
together. A store keeps the group of each letter beside it, so that counting groups reads nothing
but an index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

MAX_TEXT = 200
"""The limit of characters of a masked reason."""
_READ = 1_000
"""The characters of a reason that are looked at."""

_MASKS = (
    (re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8}"), "#"),
    (re.compile(r"""(?<!\w)(['"])(?:\\.|(?!\1)[^\\])*(?:\1(?!\w)|\\?\Z)"""), "'…'"),
    (re.compile(r"(?<![\w.-])[-+]?\d+(?:[.,_]\d+)*(?:[eE][-+]?\d+)?(?![\w-])"), "#"),
    (re.compile(r"[A-Za-z0-9_-]+"), lambda found: _mask_name(found[0])),
    (re.compile(r"\d+"), "#"),
    (re.compile(r"#(?:, ?#)+|'…'(?:, ?'…')+"), lambda found: found[0].partition(",")[0]),
    (re.compile(r"\s+"), " "),
)
"""In this order: e-mail addresses, quoted values, numbers, names with digits, digits of other
scripts, lists, spaces."""
_HEX = re.compile(r"(?![A-Za-z]+-[0-9]+\Z)[0-9a-fA-F-]{8,}")
_DIGITS = re.compile(r"[0-9]+")


def masked(reason: str) -> str:
    """Return a reason as one line without ids, numbers and quoted values, in bounded time.

    What stands in backticks remains: it is what a field was to be, not what it was.
    """
    text = reason[:_READ]
    for pattern, instead in _MASKS:
        text = pattern.sub(instead, text)
    return text.strip()[:MAX_TEXT].rstrip()


def cause_of(handler: str, type: str, reason: str) -> str:  # noqa: A002 - CloudEvents' own name
    """Return the group of a dead letter, 16 hexadecimal digits."""
    text = "\0".join((handler, type, masked(reason)))
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def causes_of(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return id and cause of each of these rows of ``oyez_dead``."""
    return [
        {"id": row["id"], "cause": cause_of(row["handler"], row["type"], row["reason"])}
        for row in rows
    ]


def _mask_name(name: str) -> str:
    """Mask an id as a whole, and of a name such as ``sqlite3`` only its number."""
    runs = len(_DIGITS.findall(name))
    if runs > 1 or (runs and _HEX.fullmatch(name)):
        return "#"
    return _DIGITS.sub("#", name)
