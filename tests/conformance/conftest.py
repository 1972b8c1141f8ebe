"""Prints the table broker by guarantee after a run, and writes docs/capabilities.md when asked.

A suite's test says by its docstring which guarantees it holds an adapter to: ``(G1, G5)``. A class
with a ``row`` is a line of the table; ``store`` is what a delivery suite ran on.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest

from oyez.ports import Capabilities

GUARANTEES = {
    "G1": "no event is lost",
    "G2": "every effect happens once",
    "G3": "order per key",
    "G4": "a poison event harms itself alone",
    "G5": "nothing stalls silently",
    "G6": "bounded memory",
    "G7": "graceful drain, take-over within 5 s",
    "G8": "replay and late joiners",
}
DECLARED = "capabilities."
INTRODUCTION = """\
Written by the last run of the conformance suites (`make capabilities`) against the real servers of
[scripts/services](guide/servers.md). A number counts the tests that hold the broker to a guarantee,
on every store together; `no` is what the broker declares that it can't do, which the suite then
skips by name. *Survives* is what an acknowledged record survives: a power loss, a crash of the
server's process, or nothing."""
PAGE = os.environ.get("CAPABILITIES", "")
"""Where to write the page; it is written only by a run in which nothing failed."""


class Line(msgspec.Struct):
    """What is known of one adapter."""

    passed: dict[str, Counter[str]] = {}
    """Outcomes by guarantee."""
    declared: Capabilities | None = None
    stores: set[str] = set()


lines: dict[str, Line] = defaultdict(lambda: Line({g: Counter() for g in GUARANTEES}, None, set()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what became of a suite's test."""
    report = yield
    row = getattr(getattr(item, "cls", None), "row", "")
    ended = report.when == "call" or report.outcome != "passed"
    if row and ended:
        line = lines[row]
        line.declared = getattr(item.cls, "declared", None) or line.declared  # type: ignore[attr-defined]
        if store := getattr(item.cls, "store_row", ""):  # type: ignore[attr-defined]
            line.stores.add(store)
        outcome: str = report.outcome
        if report.skipped and DECLARED in str(report.longrepr):
            outcome = "declared"
        named = re.findall(r"G[1-8]\b", getattr(item.function, "__doc__", "") or "")  # type: ignore[attr-defined]
        for guarantee in set(named):
            line.passed[guarantee][outcome] += 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table; write the page."""
    if not lines:
        return
    terminalreporter.section("broker by guarantee")
    widths = (22, 14, 8, 20, *(7 for _ in GUARANTEES))
    for cells in [("", "survives", "history", "stores", *GUARANTEES), *map(_cells, sorted(lines))]:
        text = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        terminalreporter.write_line("".join(text).rstrip())
    if PAGE and not terminalreporter.stats.get("failed"):
        Path(PAGE).write_text(_page())


def _cells(row: str) -> tuple[str, ...]:
    line = lines[row]
    declared = line.declared
    return (
        row,
        declared.durability if declared else "?",
        "?" if declared is None else "yes" if declared.history else "no",
        ", ".join(sorted(line.stores)) or "-",
        *(_cell(line.passed[guarantee]) for guarantee in GUARANTEES),
    )


def _cell(outcomes: Counter[str]) -> str:
    """How many tests passed; or that one failed, that all were skipped, that none ran."""
    if outcomes["failed"]:
        return f"✗ {outcomes['failed']}"
    if outcomes["passed"]:
        return f"✓ {outcomes['passed']}"
    return "no" if outcomes["declared"] else "not run" if outcomes["skipped"] else "·"


def _page() -> str:
    head = "| | survives | history | largest record | on stores | " + " | ".join(GUARANTEES) + " |"
    rows = []
    for row in sorted(lines):
        name, durability, history, stores, *cells = _cells(row)
        declared = lines[row].declared
        largest = f"{declared.max_bytes:,} B" if declared and declared.max_bytes else "any"
        rows.append(" | ".join(("", f"`{name}`", durability, history, largest, stores, *cells, "")))
    return "\n".join(
        (
            "# What each broker can do",
            "",
            *INTRODUCTION.splitlines(),
            "",
            head,
            "|" + " --- |" * (5 + len(GUARANTEES)),
            *(row.strip() for row in rows),
            "",
            *(f"- **{name}** {text}" for name, text in GUARANTEES.items()),
            "",
        )
    )
