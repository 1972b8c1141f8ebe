"""Where each key of a TOML text stands."""

from __future__ import annotations

import re
import tomllib

from oyez.config.mistakes import Key

_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_KEYS = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_HEADER_LINE = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_KEYS})[ \t]*\]")
_VALUE_LINE = re.compile(rf"[ \t]*({_KEYS})[ \t]*=")


def lines(text: str) -> dict[Key, int]:
    """Return the line on which each key of a valid TOML text first stands.

    A scan, not a parser: keys inside inline tables and lists are found at the line of the whole.
    """
    found: dict[Key, int] = {(): 1}
    counts: dict[Key, int] = {}
    table: Key = ()
    fence = ""
    for number, line in enumerate(text.split("\n"), 1):
        if fence:
            fence = "" if fence in line else fence
            continue
        key: Key = ()
        if header := _HEADER_LINE.match(line):
            table = ()
            for part in _parts(header[2]):
                if table in counts:
                    table = (*table, counts[table])
                table = (*table, part)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
            if table in counts:
                table = (*table, counts[table])
            key = table
        elif value := _VALUE_LINE.match(line):
            key = (*table, *_parts(value[1]))
            rest = line[value.end() :].lstrip()
            fence = rest[:3] if rest[:3] in ('"""', "'''") and rest.count(rest[:3]) == 1 else ""
        for length in range(1, len(key) + 1):
            found.setdefault(key[:length], number)
    return found


def _parts(keys: str) -> list[str]:
    return [_unquoted(part) for part in re.findall(_KEY, keys)]


def _unquoted(part: str) -> str:
    if part[0] not in "\"'":
        return part
    try:
        return str(tomllib.loads(f"part = {part}")["part"])
    except ValueError:  # what looked like a key was the inside of a long string
        return part
