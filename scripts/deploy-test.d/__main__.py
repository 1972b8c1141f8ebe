"""The command line: `scripts/deploy-test --help`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# The servers that the shop needs on the node are those that tests run against elsewhere.
sys.path.append(str(HERE.parent / "services.d"))
sys.path.insert(0, str(ROOT / "src"))

import programs
import projects
import world
from report import Outcome, Report
from state import State

PARTS = {
    "manifests": "every generated manifest is admitted by a real API server; wrong ones are not",
    "rollout": "the shop on a node: a rolling update under load, with the books checked",
    "failures": "pods deleted by force, an image that does not start, a drain of the node",
    "scaling": "KEDA scales a Deployment from one to three and back by what Oyez wants",
}
WORK = ROOT / ".deploy-test"


def main() -> int:
    """Run the parts that were asked for; the exit code."""
    options = _options()
    # What is deployed is this repository's Oyez, whichever one is installed.
    os.environ["PYTHONPATH"] = f"{ROOT / 'src'}"
    names = options.part or list(PARTS)
    if world.inside():
        return _inside(names, options)
    strict = bool(os.environ.get("STRICT"))
    if lacks := programs.missing_here():
        return _skipped(names, lacks, strict=strict)
    try:
        _bring(names)
    except programs.Unavailable as reason:
        print(f"deploy-test: {reason}", file=sys.stderr)
        return 1 if strict else _skipped(names, [str(reason)], strict=strict)
    with world.alone(WORK.with_suffix(".lock")):
        world.swept()
        with world.folder(WORK):
            try:
                for deployed in _prepared(names):
                    if set(names) - {"manifests"}:
                        projects.build(deployed, _say)
            except world.Failed as failure:
                print(f"deploy-test: {failure}", file=sys.stderr)
                return 1
            try:
                return world.enter(world.again(), SERVICES_ADDRESS=world.NODE)
            finally:
                world.swept()


def _inside(names: Sequence[str], options: argparse.Namespace) -> int:
    from cluster import Cluster

    report = Report(PARTS)
    world.settle_in()
    deployed = {each.name: each for each in _prepared(names)}
    cluster = Cluster(WORK, State.here(), deployed, _say, pace=options.orders)
    try:
        for name in names:
            report.add(name, _run(cluster, name))
    except KeyboardInterrupt:
        print("\ndeploy-test: stopped", file=sys.stderr)
        report.stopped(names)
    finally:
        cluster.stop()
    print(report.table())
    return report.exit_code


def _prepared(names: Sequence[str]) -> list[projects.Deployed]:
    """Return the systems that the parts deploy: copied and generated once, then found again."""
    needs = {"rollout": ["shop"], "failures": ["shop"], "scaling": ["counter"]}
    wanted = {system for name in names for system in needs.get(name, ["shop", "counter"])}
    return [projects.prepare(system, WORK) for system in sorted(wanted, reverse=True)]


def _run(cluster: object, name: str) -> Outcome:
    _say(f"{name}: {PARTS[name]}")
    part: Callable[[], Outcome] = getattr(cluster, name)
    try:
        return part()
    except world.Failed as failure:
        return Outcome.failed(str(failure))
    except Exception:  # noqa: BLE001 - one part's mistake does not hide the others' outcomes
        return Outcome.failed(traceback.format_exc())


def _bring(names: Sequence[str]) -> None:
    """Bring all programs here while there is a network: a world apart has none."""
    state = State.here()
    programs.unpacked(state, _say)
    programs.CONTROL.bring(state, _say)
    programs.AUTOSCALER.source()
    if set(names) - {"manifests"}:
        programs.NODE.bring(state, _say)
    if "scaling" in names:
        programs.AUTOSCALER.bring(state, _say)


def _skipped(names: Sequence[str], lacks: Sequence[str], *, strict: bool) -> int:
    report = Report(PARTS)
    for name in names:
        report.add(name, Outcome.skipped(f"this machine lacks {'; '.join(lacks)}"))
    print(report.table())
    return 1 if strict and programs.should_run(lacks) else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/deploy-test",
        description="What `oyez deploy` writes, run for real: a control plane, a node, KEDA.",
        epilog=f"Everything runs in namespaces of its own and ends with the command. Logs are in "
        f"{WORK.name}/logs, programs in $SERVICES_CACHE (default .services-cache).",
    )
    parser.add_argument(
        "--part",
        action="append",
        choices=PARTS,
        help=f"only this part, can be given again: {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--orders", type=float, default=4.0, metavar="N", help="orders a second (default 4)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
