"""Values as YAML that people read: blocks, no anchors, texts quoted where they need it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.@-]*(?::[A-Za-z0-9_/.@-]+)*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", ".inf", ".nan"}


def documents(values: Sequence[Mapping[str, Any]]) -> str:
    """Return the values as documents of one file."""
    return "---\n".join(document(value) for value in values)


def document(value: Mapping[str, Any]) -> str:
    """Return a value as YAML 1.2 that readers of 1.1 understand the same way."""
    return "".join(f"{line}\n" for line in _block(value))


def _block(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entry(f"{_scalar(key)}:", inner)
        return
    for inner in value:
        if _nested(inner):
            first, *rest = _block(inner)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
        else:
            yield f"- {_flat(inner)}"


def _entry(key: str, inner: Any) -> Iterator[str]:
    if isinstance(inner, str) and "\n" in inner and _block_text(inner):
        yield f"{key} |"
        yield from (f"  {line}" if line else "" for line in inner[:-1].split("\n"))
    elif _nested(inner):
        yield key
        yield from (f"  {line}" for line in _block(inner))
    else:
        yield f"{key} {_flat(inner)}"


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) and bool(value)


def _block_text(text: str) -> bool:
    """Return whether a text can stand as a block, as it is."""
    lines = text.split("\n")
    clean = all(line.isprintable() and line == line.rstrip() for line in lines)
    return clean and text.endswith("\n") and not text.endswith("\n\n") and lines[0][:1].strip() > ""


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value}"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS and not _number(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
