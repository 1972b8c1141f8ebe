"""Untrusted text and payloads, made fit to be shown on a page.

Nothing that comes from an event is ever markup. Characters that control a terminal, turn the
direction of text or can't be seen are shown by their code point.
"""

from __future__ import annotations

import re
from difflib import unified_diff

import msgspec
from markupsafe import Markup

from oyez import strict_json
from oyez.errors import InvalidEvent

MOST = 2_000
"""Characters of a text that are shown, where a page does not say otherwise."""
PRETTY = 65_536
"""Bytes of a payload that are laid out."""

_DUMPED = 4_096
# Letters and marks that str.isprintable() lets pass and that nobody sees.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)


def seen(value: object, most: int = MOST) -> Markup:
    """Return a text as markup in which every character can be seen; cut after ``most`` of them."""
    text = str(value)
    cut = len(text) > most
    head = text[:most]
    parts: list[Markup | str] = []
    if head.isprintable() and not _UNSEEN.search(head):
        parts.append(head)
        head = ""
    for char in head:
        if char in "\n\t" or (char.isprintable() and not _UNSEEN.match(char)):
            parts.append(char)
        else:
            parts.append(Markup('<span class="unseen">U+{:04X}</span>').format(ord(char)))
    if cut:
        parts.append(
            Markup('<span class="unseen">… {} more characters</span>').format(len(text) - most)
        )
    return Markup("<bdi>{}</bdi>").format(Markup("").join(parts))


def brief(cause: str) -> str:
    """Return a masked reason without how often it was tried, which says nothing once masked."""
    return cause.removeprefix("failed # of # attempts: ")


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """A payload as text."""

    text: str
    form: str
    """``JSON``, ``text`` or ``bytes``."""
    whole: bool
    """Whether nothing of it was left out."""


def laid_out(data: bytes, size: int) -> Payload:
    """Return the payload of ``size`` bytes of which ``data`` is the beginning."""
    whole = len(data) == size
    head = data[:PRETTY]
    if whole and len(data) <= PRETTY:
        try:
            strict_json.read(data)
            text = msgspec.json.format(data, indent=2).decode()
            return Payload(text=text, form="JSON", whole=True)
        except (InvalidEvent, msgspec.MsgspecError, UnicodeDecodeError):
            pass
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start >= len(head) - 3 and len(head) < size:
            text = head[: error.start].decode()
        else:
            return Payload(
                text=_dump(head[:_DUMPED]), form="bytes", whole=size <= len(head[:_DUMPED])
            )
    return Payload(text=text, form="text", whole=len(head) == size)


def glance(data: bytes, most: int = 160) -> Markup:
    """Return the beginning of a payload in one line; bytes that are no text in hexadecimal."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        cut = error.start >= len(data) - 3  # within its last character
        text = data[: error.start].decode() if cut and error.start else data[:24].hex(" ")
    text = " ".join(text.split())
    return seen(text if len(text) <= most else f"{text[:most]}…")


def differences(before: str, after: str) -> list[tuple[str, str]]:
    """Return the lines of a diff, each with its kind: ``same``, ``gone``, ``new`` or ``skip``."""
    kinds = {"+": "new", "-": "gone", "@": "skip", " ": "same"}
    lines = unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=3)
    return [(kinds[line[0]], line[1:]) for line in list(lines)[2:]]


def _dump(data: bytes) -> str:
    """Return a hexadecimal dump."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {row.hex(' '):<47}  {shown}")
    return "\n".join(lines)
