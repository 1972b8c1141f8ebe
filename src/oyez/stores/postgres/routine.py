"""A commit in one round trip: a function that lives as long as its connection does all of it.

The driver sends a statement and waits for its answer, so a commit is four round trips or more:
begin, the service's writes, Oyez's own, and commit. A function in PL/pgSQL holds all these
statements, is planned once, and its one call is a transaction by itself. It is temporary: it is
made on the connection and goes with it, and nothing of it is in the schema.

It knows the statements that a service's commits repeat, and runs each once for every set of
parameters, in the given order. The rest goes the long way, `oyez.stores.postgres.changes.apply`:
what is met for the first time or is unusual, what must be explained, and every commit through a
pooler or of a user who may not make temporary functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

import asyncpg
from asyncpg import exceptions as pg

from oyez.ports import Changes, Writes
from oyez.postgresql import Connection
from oyez.stores.postgres.changes import (
    ANNOUNCED,
    FENCE,
    HANDLED,
    NAMED,
    SENT,
    arguments,
    fence_arguments,
    fenced,
)
from oyez.stores.postgres.statements import WHOLE, numbered, replaced

MOST = 24
"""The number of statements that a function holds, at most: each commit passes arrays for all."""
_MOST_ARGUMENTS = 100
"""PostgreSQL's own limit, FUNC_MAX_ARGS."""
_MET = 1_000
"""The number of statements met once that are remembered."""

_OWN = """bigint text int text text bigint
 float8 text[] text[] text[] text bigint[] float8[] text[] text[] bytea[] bytea[] text[] text[]
 int[] int[] int[]""".split()
"""The types of the arguments before the service's: the fence's, the changes', and the runs'."""
_SHIFT = 6
_RUN, _FIRST, _LAST = len(_OWN) - 2, len(_OWN) - 1, len(_OWN)

_REPEATABLE = re.compile(r"\s*(?:insert|update|delete)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\$(\d+)")
_TYPES = WHOLE | {
    "bool", "float4", "float8", "numeric", "text", "varchar", "bpchar", "bytea", "uuid", "date",
    "time", "timestamp", "timestamptz", "interval", "json", "jsonb",
}  # fmt: skip
_VALUES = (
    int, float, str, bytes, bool, Decimal, UUID, date, time, timedelta, type(None)
)  # fmt: skip
"""What the driver encodes in an array as it does alone; another sequence would be an array."""


class Learnt(NamedTuple):
    """A statement of the service."""

    written: str
    names: tuple[str, ...]
    types: tuple[str, ...]


class Shape:
    """A function with a number of statements."""

    def __init__(self, lock: str, statements: tuple[Learnt, ...]) -> None:
        self.statements = statements
        self.numbers = {one.written: number for number, one in enumerate(statements)}
        types = [*_OWN, *(f"{kind}[]" for one in statements for kind in one.types)]
        self.size = len(types)
        places = ", ".join(f"${number}" for number in range(1, self.size + 1))
        body = _body(lock, statements)
        digest = sha256(f"{types}{body}".encode()).hexdigest()[:16]
        tag = f"$oyez_{digest}$"
        self.name = f"oyez_commit_{digest}"
        self.call = f"select pg_temp.{self.name}({places})"
        self.definition = (
            f"create or replace function pg_temp.{self.name}({', '.join(types)}) returns boolean"
            f" language plpgsql as {tag}{body}{tag}"
        )

    def sort(self, writes: Writes) -> list[Sequence[Any]] | None:
        """Return the runs and the columns of each statement; None for values it can't take."""
        rows: list[list[Any]] = [[] for _ in self.statements]
        runs, first, last = [], [], []
        for sql, sets in writes:
            number = self.numbers[sql]
            runs.append(number)
            first.append(len(rows[number]) + 1)
            rows[number] += sets
            last.append(len(rows[number]))
        found: list[Sequence[Any]] = [runs, first, last]
        for statement, sets in zip(self.statements, rows, strict=True):
            for name, kind in zip(statement.names, statement.types, strict=True):
                try:
                    column = [one[name] for one in sets]
                except KeyError:
                    return None
                for met in set(map(type, column)):
                    if not issubclass(met, _VALUES) or (kind in WHOLE and issubclass(met, float)):
                        return None
                found.append(column)
        return found


class Routine:
    """The function of one store, on each connection as far as it is made there."""

    def __init__(self, lock: str) -> None:
        """``lock``: statements in PL/pgSQL that a transaction begins with."""
        self._lock = lock
        self._shape = Shape(lock, ())
        self._made: WeakKeyDictionary[Connection, Shape] = WeakKeyDictionary()
        self._met: set[str] = set()
        self._unfit: set[str] = set()
        self._allowed = True

    async def commit(self, connection: Connection, changes: Changes) -> bool:
        """Commit the changes; return False, with nothing done, if they must go the long way.

        Raises Fenced and driver errors.
        """
        if (
            not self._allowed
            or changes.kept
            or changes.dead
            or changes.settled
            or changes.retried
            or changes.parked
        ):
            return False
        for sql, _ in changes.writes:
            if sql not in self._shape.numbers and not await self._learn(connection, sql):
                return False
        shape = self._shape
        sorted_writes = shape.sort(changes.writes)
        if sorted_writes is None:
            return False
        if not await self._make(connection, shape):
            self._allowed = False  # no temporary functions, or no PL/pgSQL, for this user
            return False
        claim = changes.claim
        try:
            held = await connection.fetchval(
                shape.call,
                *fence_arguments(claim, changes.position),
                *arguments(changes),
                *sorted_writes,
            )
        except asyncpg.DataError as error:
            if error.severity is None:  # the driver's own, before anything was sent
                return False
            raise
        if not held:
            assert claim is not None
            raise fenced(claim)
        return True

    async def _learn(self, connection: Connection, sql: str) -> bool:
        """Add a statement that is met again; return whether the function holds it."""
        if sql in self._unfit:
            return False
        if sql not in self._met:
            if len(self._met) < _MET:
                self._met.add(sql)
            return False
        statement = numbered(sql)
        try:
            prepared = await connection.prepare(statement.sql, name="")
        except pg.PostgresError:
            return False  # it is reported the long way
        kinds = prepared.get_parameters()
        shape = self._shape
        if (
            not _REPEATABLE.match(sql)
            or _NUMBER.search(sql)
            or len(kinds) != len(statement.names)
            or prepared.get_attributes()
            or any(kind.schema != "pg_catalog" or kind.name not in _TYPES for kind in kinds)
            or len(shape.statements) == MOST
            or shape.size + len(kinds) > _MOST_ARGUMENTS
        ):
            self._unfit.add(sql)
            return False
        learnt = Learnt(sql, statement.names, tuple(kind.name for kind in kinds))
        larger = Shape(self._lock, (*shape.statements, learnt))
        if not await self._make(connection, larger):
            self._unfit.add(sql)
            return False
        if self._shape is shape:  # else another commit has added to it: this one is added later
            self._shape = larger
        return sql in self._shape.numbers

    async def _make(self, connection: Connection, shape: Shape) -> bool:
        """Make the function on the connection; return whether the server takes it."""
        made = self._made.get(connection)
        if made is shape:
            return True
        dropped = "" if made is None else f"drop function if exists pg_temp.{made.name}; "
        try:
            await connection.execute(dropped + shape.definition)
        except pg.SyntaxOrAccessError:
            return False
        self._made[connection] = shape
        return True


def _body(lock: str, statements: Sequence[Learnt]) -> str:
    cases, before = [], len(_OWN)
    for number, one in enumerate(statements):
        places = {name: f"(${before + place})[oyez_set]" for place, name in enumerate(one.names, 1)}
        before += len(places)
        text = replaced(one.written, places.__getitem__).rstrip().rstrip(";")
        cases.append(
            f"when {number} then\n"
            f"for oyez_set in (${_FIRST})[oyez_run] .. (${_LAST})[oyez_run] loop\n{text}\n;"
            "\nend loop;"
        )
    runs = ""
    if cases:
        runs = (
            f"for oyez_run in 1 .. cardinality(${_RUN}) loop\ncase (${_RUN})[oyez_run]\n"
            + "\n".join(cases)
            + "\nend case;\nend loop;"
        )
    announced = _shifted(ANNOUNCED)
    return f"""
#variable_conflict use_column
begin
{lock}
if $2 is not null then
  {FENCE};
  if not found then return false; end if;
end if;
{runs}
if cardinality($8) > 0 then {_shifted(HANDLED)}; end if;
if cardinality($12) > 0 then {_shifted(SENT)}; end if;
if cardinality($19) > 0 then {announced} {NAMED};
elsif cardinality($17) > 0 then {announced}; end if;
return true;
end """


def _shifted(sql: str) -> str:
    return _NUMBER.sub(lambda match: f"${int(match[1]) + _SHIFT}", sql)
