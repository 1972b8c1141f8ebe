"""Prints the table broker by guarantee after a run, and writes docs/capabilities.md when asked.

A suite's test says by its docstring which guarantees it holds an adapter to: ``(G1, G5)``. A class
with a ``row`` is a line of the table; ``store`` is what a delivery suite ran on.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Generator, Iterator
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
Written by the last runs of the conformance suites (`make capabilities`) against the real servers of
[scripts/services](guide/servers.md). A number counts the tests that hold the broker to a guarantee,
on every store together; `no` is what the broker declares that it can't do, which the suite then
skips by name. *Survives* is what an acknowledged record survives: a power loss, a crash of the
server's process, or nothing."""
PAGE = os.environ.get("CAPABILITIES", "")
"""Where to write the page: from the last result of every test, of which none may have failed."""
KEPT = "conformance/results"
"""Where pytest's cache keeps these results, so that a page may come of several runs."""


class Result(msgspec.Struct):
    """What became of one suite's test."""

    row: str
    store: str
    guarantees: list[str]
    outcome: str
    declared: Capabilities | None


results: dict[str, Result] = {}
"""Of this run, by the test's name."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what became of a suite's test."""
    report = yield
    suite = getattr(item, "cls", None)
    row = getattr(suite, "row", "")
    if row and (report.when == "call" or report.outcome != "passed"):
        outcome: str = report.outcome
        if report.skipped and DECLARED in str(report.longrepr):
            outcome = "declared"
        told = getattr(getattr(item, "function", None), "__doc__", None) or ""
        results[item.nodeid] = Result(
            row=row,
            store=getattr(suite, "store_row", ""),
            guarantees=sorted(set(re.findall(r"G[1-8]\b", told))),
            outcome=outcome,
            declared=getattr(suite, "declared", None),
        )
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table of this run; write the page."""
    if not results:
        return
    terminalreporter.section("broker by guarantee")
    widths = (22, 14, 8, 20, *(7 for _ in GUARANTEES))
    for cells in [("", "survives", "history", "stores", *GUARANTEES), *_table(results)]:
        text = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        terminalreporter.write_line("".join(text).rstrip())
    if PAGE and config.cache is not None:
        kept = msgspec.convert(config.cache.get(KEPT, {}), dict[str, Result]) | results
        config.cache.set(KEPT, msgspec.to_builtins(kept))
        if all(each.outcome != "failed" for each in kept.values()):
            Path(PAGE).write_text(_page(kept))


def _table(found: dict[str, Result]) -> Iterator[tuple[str, ...]]:
    for row in sorted({each.row for each in found.values()}):
        mine = [each for each in found.values() if each.row == row]
        declared = next((each.declared for each in mine if each.declared), None)
        yield (
            row,
            declared.durability if declared else "?",
            "?" if declared is None else "yes" if declared.history else "no",
            ", ".join(sorted({each.store for each in mine} - {""})) or "-",
            *(_cell([e.outcome for e in mine if name in e.guarantees]) for name in GUARANTEES),
        )


def _cell(outcomes: list[str]) -> str:
    """How many tests passed; or that one failed, that all were skipped, that none ran."""
    count = Counter(outcomes)
    if count["failed"]:
        return f"✗ {count['failed']}"
    if count["passed"]:
        return f"✓ {count['passed']}"
    return "no" if count["declared"] else "not run" if count["skipped"] else "·"


def _page(found: dict[str, Result]) -> str:
    head = "| | survives | history | largest record | on stores | " + " | ".join(GUARANTEES) + " |"
    limits = {each.row: each.declared.max_bytes for each in found.values() if each.declared}
    rows = []
    for name, durability, history, stores, *cells in _table(found):
        largest = f"{limits[name]:,} B" if limits.get(name) else "any"
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
