"""Statements with ``:name`` parameters for PostgreSQL, numbered and typed.

A service writes the same SQL for SQLite and PostgreSQL. The server infers each parameter's type
from its place in the statement, and the driver accepts no other: a number is never converted to
text or truncated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import asyncpg

from oyez.errors import StoreRefused
from oyez.ports import Answer, Parameters, Row, Writes
from oyez.postgresql import Connection

_SHOWN = 80
"""Characters of a statement that an error shows."""
WHOLE = frozenset(("int2", "int4", "int8", "oid"))

_TOKEN = re.compile(
    r"""
      (?<!\w)e'(?:[^'\\]|\\.|'')*'             # a string with backslashes
    | '(?:[^']|'')*' | "(?:[^"]|"")*"          # a string, a name
    | (?<!\w)\$(?P<tag>(?:[a-z_]\w*)?)\$.*?\$(?P=tag)\$
    | --[^\n]* | /\*.*?\*/
    | ::                                       # a cast
    | :(?P<name>[a-z_]\w*)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_CHANGED = re.compile(r"(?:INSERT 0|UPDATE|DELETE|MERGE) (\d+)")
_ARGUMENT = re.compile(r"argument \$(\d+)(?: in element #(\d+))?")


class Statement(NamedTuple):
    """SQL with ``$n`` for its parameters, and their names in that order."""

    sql: str
    names: tuple[str, ...]
    written: str


@lru_cache(maxsize=1024)
def numbered(sql: str) -> Statement:
    """Return the statement with its parameters numbered, each name with one number."""
    names: dict[str, int] = {}
    text = replaced(sql, lambda name: f"${names.setdefault(name, len(names) + 1)}")
    return Statement(text, tuple(names), sql)


def replaced(sql: str, place: Callable[[str], str]) -> str:
    """Return the statement with each ``:name`` replaced by ``place`` of the name."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        return match[0] if name is None else place(name)

    return _TOKEN.sub(replace, sql)


async def write(connection: Connection, writes: Writes) -> None:
    """Run each statement for all its parameter sets, in order.

    Raises StoreRefused naming a parameter that is missing or of the wrong type, and driver errors.
    """
    for sql, rows in writes:
        statement = numbered(sql)
        values = [_values(statement, row) for row in rows]
        await _refuse_fractions(connection, statement, values)
        try:
            if len(values) == 1:
                await connection.execute(statement.sql, *values[0])
            else:
                await connection.executemany(statement.sql, values)
        except asyncpg.DataError as error:
            await _explain(connection, statement, values, error)
            raise


async def query(connection: Connection, sql: str, parameters: Parameters) -> list[Row]:
    """Return the rows of one statement; raises as `write` does."""
    statement = numbered(sql)
    values = _values(statement, parameters)
    await _refuse_fractions(connection, statement, [values])
    try:
        return [dict(row) for row in await connection.fetch(statement.sql, *values)]
    except asyncpg.DataError as error:
        await _explain(connection, statement, [values], error)
        raise


async def answer(connection: Connection, sql: str, sets: Sequence[Sequence[Any]]) -> Answer:
    """Run one statement with ``$n`` for each set of parameters; see `oyez.ports.Answer`."""
    if len(sets) != 1:
        await connection.executemany(sql, sets)
        return Answer(columns=(), rows=[], changed=-1)
    # An unnamed statement also works through a pooler, and does not remain on the connection.
    prepared = await connection.prepare(sql, name="")
    rows = [tuple(row) for row in await prepared.fetch(*sets[0])]
    columns = [(column.name, column.type.oid) for column in prepared.get_attributes()]
    changed = _CHANGED.fullmatch(prepared.get_statusmsg() or "")
    return Answer(columns=columns, rows=rows, changed=int(changed[1]) if changed else -1)


def _values(statement: Statement, parameters: Parameters) -> tuple[Any, ...]:
    try:
        return tuple([parameters[name] for name in statement.names])
    except KeyError as error:
        raise StoreRefused(
            f":{error.args[0]} has no value in the statement {_shown(statement)}"
        ) from None


async def _refuse_fractions(
    connection: Connection, statement: Statement, rows: Sequence[tuple[Any, ...]]
) -> None:
    """Raise StoreRefused for a fraction in an integer column: the driver would store 1.5 as 1.

    Only statements with fractions among their parameters are checked.
    """
    found = {
        place
        for values in rows
        for place, value in enumerate(values)
        if type(value) is float and not value.is_integer()
    }
    if found:
        types = await _types(connection, statement)
        for place in sorted(found):
            if types[place] in WHOLE:
                raise StoreRefused(_misfit(statement, place, 0.5, types[place]))


async def _explain(
    connection: Connection,
    statement: Statement,
    rows: Sequence[tuple[Any, ...]],
    error: asyncpg.DataError,
) -> None:
    """Raise StoreRefused for a driver error, without the value, which may be a secret."""
    if error.severity is not None:
        return  # an error of the server
    match = _ARGUMENT.search(str(error))
    if match is not None:
        place, element = int(match[1]) - 1, int(match[2] or 0)
        types = await _types(connection, statement)
        misfit = _misfit(statement, place, rows[element][place], types[place])
        raise StoreRefused(misfit) from None


async def _types(connection: Connection, statement: Statement) -> list[str]:
    prepared = await connection.prepare(statement.sql, name="")
    return [kind.name for kind in prepared.get_parameters()]


def _misfit(statement: Statement, place: int, value: object, expected: str) -> str:
    return (
        f":{statement.names[place]} is {type(value).__name__} and does not fit {expected} in the "
        f"statement {_shown(statement)}: convert it, or cast it in the statement"
    )


def _shown(statement: Statement) -> str:
    text = " ".join(statement.written.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
