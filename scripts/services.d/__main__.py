"""The command line: `scripts/services --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence

import lifecycle
from errors import ServiceError
from kinds import KINDS, SERVERS
from kinds.kafka import TOOLS, Kafka
from server import Server
from state import State


def main() -> int:
    """Do what the arguments say; the exit code."""
    options = _options()
    state = State.here()
    match options.command:
        case "up":
            return _up(state, options.names or list(SERVERS))
        case "start":
            return _each(_start, _servers(state, options.names))
        case "kill":
            return _each(lifecycle.crash, _servers(state, options.names))
        case "down":
            servers = _servers(state, options.names or list(KINDS))[::-1]
            return _each(lambda server: lifecycle.down(server, wipe=options.wipe), servers)
        case "kafka-tool":
            return Kafka(state).tool(options.tool, options.arguments)
        case _:
            return _status(state, as_json=options.json)


def _up(state: State, names: Sequence[str]) -> int:
    servers = _servers(state, _with_needs(names))
    failures = lifecycle.up(servers, _progress)
    for name, failure in failures.items():
        _complain(name, failure)
    _table(state, [server for server in servers if server.name not in failures])
    return 1 if failures else 0


def _each(action: Callable[[Server], None], servers: Sequence[Server]) -> int:
    failed = False
    for server in servers:
        try:
            action(server)
        except ServiceError as failure:
            _complain(server.name, failure)
            failed = True
    return 1 if failed else 0


def _start(server: Server) -> None:
    if not server.log.exists():
        raise ServiceError("was never up here", f"run scripts/services up {server.name}")
    lifecycle.start(server)


def _status(state: State, *, as_json: bool) -> int:
    servers = _servers(state, state.services())
    if as_json:
        services = state.services()
        report = {
            server.name: services[server.name] | {"answers": lifecycle.answers(server)}
            for server in servers
        }
        print(json.dumps(report, indent=2))
    elif servers:
        _table(state, servers)
    else:
        print(f"nothing is up in {state.path}; scripts/services up brings it up")
    return 0


def _table(state: State, servers: Sequence[Server]) -> None:
    if not servers:
        return
    services = state.services()
    rows = [("name", "version", "url", "durability")]
    for server in servers:
        service = services[server.name]
        shown = service["url"].replace(server.password, "***")
        durability = service["durability"]
        if not lifecycle.answers(server):
            durability = "DOES NOT ANSWER"
        rows.append((server.name, service["version"], shown, durability))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[3]]))
    print(f"URLs with their passwords: {state.path / 'services.json'}")


def _servers(state: State, names: Iterable[str]) -> list[Server]:
    wanted = set(names)
    return [kind(state) for name, kind in KINDS.items() if name in wanted]


def _with_needs(names: Sequence[str]) -> list[str]:
    return [*names, *(need for name in names for need in KINDS[name].after)]


def _known(name: str) -> str:
    if name not in KINDS:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(KINDS)}")
    return name


def _complain(name: str, failure: ServiceError) -> None:
    print(f"{name}: {failure.what}\n{name}: {failure.remedy}", file=sys.stderr)


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/services",
        description="The real brokers and databases that tests run against, on loopback.",
        epilog=f"names: {' '.join(KINDS)}; without any, {' '.join(SERVERS)}. "
        "State is kept in $OYEZ_SERVICES (default .services), "
        "downloads in $SERVICES_CACHE (default .services-cache).",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, purpose: str, names: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=purpose, description=purpose)
        made.add_argument("names", nargs=names, metavar="NAME", type=_known)
        return made

    command("up", "install what is missing, start, wait until each answers", "*")
    command("start", "start again on the same port and data", "+")
    command("kill", "kill -9 the server's process", "+")
    stop = command("down", "stop by process id, in order", "*")
    stop.add_argument(
        "--wipe", action="store_true", help="also delete data and log, and choose ports anew"
    )
    status = commands.add_parser("status", help="what runs, where")
    status.add_argument("--json", action="store_true", help="everything, passwords too")
    tool = commands.add_parser("kafka-tool", help="one of Kafka's own commands, on this Kafka")
    tool.add_argument("tool", metavar="TOOL", help=f"{', '.join(TOOLS)}, or a class's full name")
    tool.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
