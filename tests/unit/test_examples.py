"""The example systems stay small enough to be read: at most 600 lines of Python each."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MOST = 600
NOT_COUNTED = {"tests", "trials"}
SQL = re.compile(r"\s*(select|insert|update|delete|create|with|alter)\b", re.IGNORECASE)
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
          tokenize.ENDMARKER}  # fmt: skip


def span(node: ast.expr) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def lines_of(source: str) -> int:
    """Count the lines of Python: not those that are blank, comments, docstrings or SQL."""
    lines, besides = set[int](), set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as text):
                besides |= span(text)
            case (
                ast.Constant(value=str(begin))
                | ast.JoinedStr(values=[ast.Constant(value=str(begin)), *_])
            ) if SQL.match(begin):
                besides |= span(node)
            case _:
                pass
    return len(lines - besides)


@pytest.mark.parametrize("name", ["activity", "iot", "logistics", "payments_fraud"])
def test_an_example_is_short(name: str) -> None:
    folder = EXAMPLES / name
    counts = {
        str(file.relative_to(folder)): lines_of(file.read_text())
        for file in sorted(folder.rglob("*.py"))
        if not NOT_COUNTED.intersection(file.relative_to(folder).parts)
    }
    counted = "\n".join(f"{count:5} {file}" for file, count in counts.items())
    total = sum(counts.values())
    assert total <= MOST, f"{name}: {total} lines, at most {MOST}:\n{counted}"


def test_what_is_a_line_of_python() -> None:
    source = '''"""A module."""

# a comment
LIMIT = 3
"""What it means."""
QUERY = """select *
 from orders"""


def double(
    number: int,
) -> int:
    """Return twice as much."""
    sql = f"insert into orders values ({number})"
    return 2 * number
'''
    assert lines_of(source) == 5
