"""One statement on a connection, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import apsw

from oyez.ports import Answer


def bind(
    connection: apsw.Connection, sql: str, parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Run one statement and return its rows by column name."""
    cursor = connection.execute(sql, parameters)
    try:
        names = [column[0] for column in cursor.get_description()]
    except apsw.ExecutionCompleteError:
        return []
    return [dict(zip(names, row, strict=True)) for row in cursor]


def answer(connection: apsw.Connection, sql: str, sets: Sequence[Sequence[Any]]) -> Answer:
    """Run one statement with ``?`` for each set of parameters; see `oyez.ports.Answer`."""
    cursor = connection.cursor()
    columns: Sequence[tuple[str, Any]] = ()
    changes = False

    def look(cursor: apsw.Cursor, statement: str, bindings: object) -> bool:
        # Once it has run to its end, apsw does not tell the columns of a statement any more.
        nonlocal columns, changes
        columns, changes = cursor.get_description(), not cursor.is_readonly
        return True

    cursor.exec_trace = look
    if len(sets) == 1:
        rows = list(cursor.execute(sql, sets[0]))
        return Answer(columns=columns, rows=rows, changed=connection.changes() if changes else -1)
    changed = 0
    for parameters in sets:
        for _ in cursor.execute(sql, parameters):
            pass
        changed += connection.changes()
    return Answer(columns=(), rows=[], changed=changed if changes else -1)
