"""The command line: `scripts/torture --help`."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterable
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
import targets
import world
from checker import judge
from errors import ServiceError
from grounds import BROKERS, STORES, Ground, Servers
from plan import PARTS, play

WORK = ROOT / ".torture"
CACHE = Path(os.environ.get("SERVICES_CACHE") or ROOT / ".services-cache")


def main() -> int:
    """Run what was asked for; the exit code."""
    options = _options()
    if options.page:
        results.write_page(results.PAGE, results.FILE)
        return 0
    chosen = [] if options.campaign else _runs(options)
    if os.geteuid() == 0 and not world.inside():
        # Inside there is no network, so what is missing has to come before.
        _install([each.place for each in targets.TARGETS] if options.campaign else chosen)
        return world.enter(world.again())
    if world.inside():
        world.reaped()
        world.run(["ip", "link", "set", "lo", "up"])
    WORK.mkdir(exist_ok=True)
    if options.campaign:
        return _campaign(options)
    failures = []
    for run in chosen:
        lacks = _lacks(*run)
        if lacks:
            print(f"{' '.join(run)}: skipped, {lacks}", flush=True)
            failures.append(bool(os.environ.get("STRICT")))
        else:
            count = options.kills or PARTS[run[0]].count
            failures.append(_failed(run, options.seed, count, options))
    return int(any(failures))


def _campaign(options: argparse.Namespace) -> int:
    """Do what the results do not show yet, the smallest share first; 1 if a run failed."""
    end = time.monotonic() + 60.0 * options.minutes
    lacking = {each: lacks for each in targets.TARGETS if (lacks := _lacks(*each.place))}
    for each, lacks in lacking.items():
        print(f"{' '.join(each.place)}: skipped, {lacks}", flush=True)
    possible = [each for each in targets.TARGETS if each not in lacking]
    failed = bool(lacking and os.environ.get("STRICT"))
    while True:
        kept = results.read(options.results)
        target = targets.following(kept, end - time.monotonic(), possible)
        if target is None:
            print(targets.shown(kept), flush=True)
            return int(failed)
        seed = options.seed + sum(map(target.of, kept))
        count = min(target.piece, target.missing(kept)) if not target.counts else target.piece
        print(f"{' '.join(target.place)}: {count} faults, seed {seed}", flush=True)
        failed |= _failed(target.place, seed, count, options)


def _failed(run: tuple[str, str, str], seed: int, count: int, options: argparse.Namespace) -> bool:
    part, broker, store = run
    folder = WORK / "-".join(run)
    with world.alone(WORK / f"{'-'.join(run)}.lock"):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            result = asyncio.run(_play(run, folder, seed, count))
        except Exception as error:  # noqa: BLE001 - one run's end does not hide the others' results
            print(f"{part} on {broker} and {store} broke off:", flush=True)
            traceback.print_exception(error)
            result = results.broken(part=part, broker=broker, store=store, seed=seed, error=error)
        print(results.shown(result), flush=True)
        results.append(options.results, result)
        failed = results.failed(result)
        if not failed and not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return failed


async def _play(
    run: tuple[str, str, str], folder: Path, seed: int, count: int
) -> dict[str, object]:
    name, broker, store = run
    part = PARTS[name]
    begun = time.monotonic()
    ground = Ground(folder, CACHE, broker=broker, store=store, needs=part.needs)
    async with ground:
        evidence, required = await play(part, ground, seed=seed, count=count)
    return results.line(
        part=name,
        broker=broker,
        store=store,
        seed=seed,
        seconds=time.monotonic() - begun,
        evidence=evidence,
        verdict=judge(evidence, required),
    )


def _lacks(name: str, broker: str, store: str) -> str:
    """Why a part can't run here; empty if it can."""
    part, embedded = PARTS[name], broker == "embedded"
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


def _install(runs: Iterable[tuple[str, str, str]]) -> None:
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
    parser.add_argument(
        "--campaign", action="store_true", help="do what the results do not show yet of the whole"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, metavar="N", help="only what fits into so many"
    )
    parser.add_argument("--page", action="store_true", help="only write the table of the docs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
