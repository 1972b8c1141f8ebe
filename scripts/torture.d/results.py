"""What runs have shown: a JSON line each, and the table that is made of them."""

from __future__ import annotations

import json
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from checker import HARMS, Verdict
from evidence import Evidence
from measures import percentile

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "reliability.jsonl"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- results: scripts/torture --page -->", "<!-- end of results -->"
_COLUMNS = ("part", "broker", "store", "runs", "faults", "inside", "orders", "events", "again")


def line(
    *,
    part: str,
    broker: str,
    store: str,
    seed: int,
    seconds: float,
    evidence: Evidence,
    verdict: Verdict,
) -> dict[str, Any]:
    """Return what one run comes to."""
    faults = Counter(each["name"] for each in evidence.of("fault"))
    drained = evidence.of("drained")
    return {
        **_place(part, broker, store, seed),
        "seconds": round(seconds, 1),
        "orders": len(evidence.accepted),
        "events": len(evidence.records or evidence.witnessed),
        "faults": dict(faults),
        "missed": len(evidence.of("missed")),
        "points": sum(each["count"] for each in evidence.of("points")),
        "inside": sum(bool(each.get("inside")) for each in evidence.of("fault")),
        "damaged": dict(Counter(each["became"] for each in evidence.of("damage"))),
        "duplicates": evidence.duplicates + evidence.effects_repeated,
        **{harm: verdict.harmed(harm) for harm in HARMS},
        "recovery": [round(each, 3) for each in verdict.recoveries],
        "drained": round(drained[0]["seconds"], 1) if drained else None,
        "void": verdict.void,
        "problems": [f"{problem.rule}: {problem.what}" for problem in verdict.problems],
    }


def broken(*, part: str, broker: str, store: str, seed: int, error: Exception) -> dict[str, Any]:
    """Return what a run comes to that broke off: nothing, and why."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return {
        **_place(part, broker, store, seed),
        **dict.fromkeys(("seconds", "orders", "events", "inside", "duplicates", *HARMS), 0),
        "missed": 0,
        "points": 0,
        "faults": {},
        "damaged": {},
        "recovery": [],
        "drained": None,
        "void": [f"it broke off: {type(error).__name__}: {error}"[:500]],
        "problems": [],
    }


def append(path: Path, result: dict[str, Any]) -> None:
    """Keep a run's result."""
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the results that were kept."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(results: Iterable[dict[str, Any]]) -> str:
    """Return the table in Markdown: a row for each part, broker and store.

    Void runs are left out, and those whose cause was found: see `causes`.
    """
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        if not result["void"] and not result.get("because"):
            rows[result["part"], result["broker"], result["store"]].append(result)
    heads = (*_COLUMNS, *HARMS, "95 % bound", "recovery p50", "p99", "drained")
    lines = [_row(heads), _row(["---"] * 3 + ["---:"] * (len(heads) - 3))]
    lines += [_row([*place, *_cells(runs)]) for place, runs in sorted(rows.items())]
    return "\n".join(lines)


def causes(results: Iterable[dict[str, Any]]) -> str:
    """Return a table of the runs that failed, with what was found: the ``because`` of their line.

    Whoever has found and mended the cause writes it there. Until then a run is in the other table.
    """
    lines = [_row(("part", "broker", "store", "seed", "at", "harm", "because")), _row(["---"] * 7)]
    for each in results:
        if each.get("because"):
            harm = ", ".join(f"{name} {each[name]}" for name in HARMS if each[name]) or "broke off"
            place = (each[name] for name in ("part", "broker", "store", "seed", "commit"))
            lines.append(_row([*map(str, place), harm, each["because"]]))
    return "\n".join(lines)


def told(results: Sequence[dict[str, Any]]) -> str:
    """Return what the page tells of runs."""
    return f"{table(results)}\n\nRuns that failed, and what was found:\n\n{causes(results)}"


def bound(faults: int, harms: int) -> str:
    """Return what none of so many faults says of the next one: the rule of three, 3/N."""
    if harms or not faults:
        return "-"
    return f"< {min(1.0, 3 / faults):.2g}"


def write_page(page: Path, results: Path) -> None:
    """Put the table into the page."""
    text = page.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{told(read(results))}\n{END}{after}")


def shown(result: dict[str, Any]) -> str:
    """Return a run's result for a person."""
    lines = [
        f"{result['part']} on {result['broker']} and {result['store']}: "
        f"{result['orders']} orders, {result['events']} events, {result['seconds']:.0f} s",
        "  faults: " + ", ".join(f"{n} of {name}" for name, n in result["faults"].items()),
        f"  inside transactions: {result['inside']}; came again: {result['duplicates']}",
        "  " + ", ".join(f"{harm}: {result[harm]}" for harm in HARMS),
    ]
    if result["recovery"]:
        p50, p99 = (percentile(result["recovery"], share) for share in (0.5, 0.99))
        lines.append(f"  recovery p50 {p50:.2f} s, p99 {p99:.2f} s; drained {result['drained']} s")
    if result["damaged"]:
        lines.append(f"  damaged files: {result['damaged']}")
    lines += [f"  VOID: {reason}" for reason in result["void"]]
    lines += [f"  FAILED: {problem}" for problem in result["problems"]]
    return "\n".join(lines)


def failed(result: dict[str, Any]) -> bool:
    """Whether a run has harmed something, or shows nothing."""
    return bool(result["void"] or result["problems"])


def _cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    # What is delivered again harms nothing by itself: it is counted by what came of it.
    faults = sum(n for run in runs for name, n in run["faults"].items() if name != "duplicate")
    harms = [sum(run[harm] for run in runs) for harm in HARMS]
    recoveries = [each for run in runs for each in run["recovery"]]
    totals = [sum(run[what] for run in runs) for what in ("inside", "orders", "events")]
    return [
        *(f"{each:,}" for each in (len(runs), faults, *totals)),
        f"{sum(run['duplicates'] for run in runs):,}",
        *(str(harm) for harm in harms),
        bound(faults, sum(harms)),
        *(f"{percentile(recoveries, share):.2f} s" if recoveries else "-" for share in (0.5, 0.99)),
        f"{max((run['drained'] or 0.0) for run in runs):.1f} s",
    ]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _place(part: str, broker: str, store: str, seed: int) -> dict[str, Any]:
    return {
        "part": part,
        "broker": broker,
        "store": store,
        "seed": seed,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _commit() -> str:
    ran = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout.strip() or "unknown"
