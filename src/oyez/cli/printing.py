"""The output of commands: escaped text, tables and JSON; colour on terminals only."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from oyez.inspection.form import escape

UNKNOWN = "?"
"""An unknown value in a table; never shown as 0."""

Cell = str | int | Text | None
"""A cell of a table; None, for no value, is shown as a dash."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1; `oyez.cli.main` exits with 0


def console(**options: Any) -> Console:
    """Return a console on standard output, for escaped text."""
    return _Console(highlight=False, soft_wrap=True, markup=False, emoji=False, **options)


def shorten(text: str, width: int) -> str:
    """Return the text, truncated with an ellipsis to a number of columns."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def write(text: str) -> None:
    """Print escaped text unchanged."""
    try:
        click.echo(text)
    except BrokenPipeError:
        # click recognizes the system's error by its number, and exits with 1 without a message;
        # this one reaches `oyez.cli.main`.
        raise BrokenPipeError from None


def print_json(value: object) -> None:
    """Print one JSON document, in ASCII, which is safe on a terminal."""
    write(json.dumps(value, indent=2))


def print_line(text: Text | str) -> None:
    """Print one line."""
    console().print(text)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print aligned columns, numbers to the right; a terminal truncates the last column."""
    output = console()
    lines = [[_text(cell) for cell in row] for row in rows]
    widths = [
        max(cell_len(title), *(line[index].cell_len for line in lines)) if lines else len(title)
        for index, title in enumerate(titles)
    ]
    right = [
        bool(rows) and all(_is_number(row[index]) for row in rows) for index in range(len(widths))
    ]
    room = output.width - sum(widths[:-1]) - 2 * (len(widths) - 1)
    heads = [Text(title, style="bold") for title in titles]
    for line in (heads, *lines):
        printed = Text()
        for index, cell in enumerate(line):
            padding = " " * (widths[index] - cell.cell_len)
            if index < len(widths) - 1:
                parts = (padding, cell) if right[index] else (cell, padding)
                printed.append_text(Text.assemble(*parts, "  "))
                continue
            if output.is_terminal and cell.cell_len > max(room, 10):
                cell.truncate(max(room, 10), overflow="ellipsis")
            printed.append_text(Text.assemble(padding, cell) if right[index] else cell)
        printed.rstrip()
        output.print(printed)


def warn(text: str) -> None:
    """Print one line on standard error."""
    click.echo(f"oyez: {escape(text)}", err=True)


def is_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()


def local_time(seconds: float) -> str:
    """Return date and time in the machine's time zone, to the second."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def payload(data: bytes | None) -> str:
    """Return an event's data as text if it is UTF-8, else as hex; escaped."""
    if data is None:
        return "(none)"
    try:
        return escape(data.decode())
    except UnicodeDecodeError:
        return f"0x{data.hex()}"


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean …?``, or an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _text(cell: Cell) -> Text:
    if isinstance(cell, Text):
        return cell.copy()
    return Text("-", style="dim") if cell is None else Text(escape(cell))


def _is_number(cell: Cell) -> bool:
    return cell is None or isinstance(cell, int) or str(cell) in (UNKNOWN, "-")
