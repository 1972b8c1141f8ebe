"""The command line: `scripts/torture --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# What it stands on: the shop, the shop in a test's folder, the servers of tests, a world apart.
sys.path += [
    str(ROOT / "examples" / "shop"),
    str(ROOT / "tests" / "system"),
    str(HERE.parent / "services.d"),
    str(HERE.parent / "deploy-test.d"),
]

import results
import world
from checker import judge
from errors import ServiceError
from grounds import BROKERS, STORES, Ground, Servers
from plan import PARTS, Part, play

WORK = ROOT / ".torture"
CACHE = Path(os.environ.get("SERVICES_CACHE") or ROOT / ".services-cache")


def main() -> int:
    """Run what was asked for; the exit code."""
    options = _options()
    if options.page:
        results.write_page(results.PAGE, results.FILE)
        return 0
    runs = _runs(options)
    if os.geteuid() == 0 and not world.inside():
        # Inside there is no network, so what is missing has to come before.
        _install(runs)
        return world.enter(world.again())
    if world.inside():
        world.run(["ip", "link", "set", "lo", "up"])
    WORK.mkdir(exist_ok=True)
    failures = []
    for run in runs:
        with world.alone(WORK / f"{'-'.join(run)}.lock"):
            failures.append(_failed(run, options))
    return int(any(failures))


def _failed(run: tuple[str, str, str], options: argparse.Namespace) -> bool:
    name, broker, store = run
    part = PARTS[name]
    lacks = _lacks(part, broker, store)
    if lacks:
        print(f"{name} on {broker} and {store}: skipped, {lacks}", flush=True)
        return bool(os.environ.get("STRICT"))
    folder = WORK / "-".join(run)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        result = asyncio.run(_play(run, folder, options))
    except Exception:  # noqa: BLE001 - one run's failure does not hide the others' results
        print(f"{name} on {broker} and {store} broke off:\n{traceback.format_exc()}", flush=True)
        return True
    print(results.shown(result), flush=True)
    results.append(options.results, result)
    failed = results.failed(result)
    if not failed and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return failed


async def _play(
    run: tuple[str, str, str], folder: Path, options: argparse.Namespace
) -> dict[str, object]:
    name, broker, store = run
    part = PARTS[name]
    begun = time.monotonic()
    ground = Ground(folder, CACHE, broker=broker, store=store, needs=part.needs)
    async with ground:
        count = options.kills or part.count
        evidence, required = await play(part, ground, seed=options.seed, count=count)
    return results.line(
        part=name,
        broker=broker,
        store=store,
        seed=options.seed,
        seconds=time.monotonic() - begun,
        evidence=evidence,
        verdict=judge(evidence, required),
    )


def _lacks(part: Part, broker: str, store: str) -> str:
    """Why a part can't run here; empty if it can."""
    embedded = broker == "embedded"
    if "disk" in part.needs and not world.inside():
        return "a file system of its own needs root"
    if "disk" in part.needs and not embedded and store == "sqlite":
        return "the disk would be the servers' alone: choose a store of a server, or embedded"
    if "servers" in part.needs and embedded and store == "sqlite":
        return "no server takes part"
    if "embedded" in part.needs and not embedded:
        return "it is about the embedded broker"
    if "strace" in part.needs and shutil.which("strace") is None:
        return "strace is missing"
    if "clock" in part.needs and shutil.which("cc") is None:
        return "a C compiler is missing"
    return ""


def _runs(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    return list(
        product(
            options.part or list(PARTS), options.broker or ["embedded"], options.store or ["sqlite"]
        )
    )


def _install(runs: Sequence[tuple[str, str, str]]) -> None:
    names = {name for _, *places in runs for name in places} - {"embedded", "sqlite"}
    try:
        Servers(sorted(names), WORK / "installed", CACHE).install()
    except ServiceError as error:
        raise SystemExit(f"torture: {error}") from None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/torture",
        description="The shop under injected faults, and an oracle that reads every store after.",
        epilog="parts: " + "; ".join(f"{name}: {part.about}" for name, part in PARTS.items()),
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this, again for more")
    parser.add_argument("--broker", action="append", choices=BROKERS, help="by default embedded")
    parser.add_argument("--store", action="append", choices=STORES, help="by default sqlite")
    parser.add_argument("--kills", type=int, metavar="N", help="fire so many faults in each run")
    parser.add_argument("--seed", type=int, default=1, metavar="K", help="which, and when")
    parser.add_argument("--results", type=Path, default=WORK / "results.jsonl", metavar="FILE")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a run that passed")
    parser.add_argument("--page", action="store_true", help="only write the table of the docs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
