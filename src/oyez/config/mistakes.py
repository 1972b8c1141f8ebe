"""What a mistake in the settings reads like: place, key, what is allowed, what was found."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from oyez.errors import ConfigurationError

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

Key = tuple[str | int, ...]
"""The way to a setting: names of tables and keys, and indexes into lists of tables."""


def mistake(
    place: str, key: str, expected: str, found: str, hint: str | None = None
) -> ConfigurationError:
    """Return the error about ``key``, on one line without control characters."""
    text = f"{place}: {key + ': ' if key else ''}expected {expected}, found {found}"
    if hint:
        text += f"; did you mean {hint}?"
    return ConfigurationError(_printable(text))


def misfit(place: str, key: str, problem: ConfigurationError) -> ConfigurationError:
    """Return the error about ``key`` that says what an adapter finds wrong with its URL."""
    return ConfigurationError(_printable(f"{place}: {key}: {problem}"))


def dotted(key: Key) -> str:
    """Return the key as TOML spells it, such as ``gateway.routes[0].path``."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE_KEY.fullmatch(part) else f'"{part}"')
    return text


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that the name was most likely meant to be; None if there is none."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return close[0] if close else None


def closest_scheme(value: object, choices: tuple[str, ...]) -> str | None:
    """Return the scheme that the value's was most likely meant to be; None if it is right."""
    scheme = value.partition(":")[0] if isinstance(value, str) else ""
    close = closest(scheme, choices)
    return None if close == scheme else close


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
