"""The ``oyez`` command. Exit codes: 0 done, 1 the thing asked for failed, 2 wrong usage."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from oyez.errors import ConfigurationError, DeclarationError, OyezError

_COMMANDS = {
    "new": "Scaffold a runnable two-service project with tests.",
    "dev": "Run every service, the gateway and the companions of oyez.toml.",
    "run": "Run one service in the foreground; SIGTERM drains it.",
    "migrate": "Make what the stores of services need, or check it; then exit.",
    "gateway": "Run the gateway alone, or make an API key for it.",
    "console": "Serve the console: the system's state, dead letters, and their cures.",
    "bridge": "Copy streams from one broker to another.",
    "publish": "Publish one event.",
    "tail": "Follow events live.",
    "flow": "Show the journey of an order as a tree.",
    "dead": "List, group, show, redrive or discard dead letters.",
    "audit": "Show who did what to services: redrives, aborts, replays.",
    "schedule": "List what is due later, or cancel an event of it.",
    "view": "List views; build, compare or begin one, or go back a version.",
    "saga": "List, show, retry, abort, resolve, draw or export sagas.",
    "backfill": "Announce what a service has, to one that lacks its history.",
    "replay": "Handle a service's history once more, and compare.",
    "simulate": "Crash the services in virtual time, and show what breaks.",
    "lag": "Show partitions, owners, positions and lag.",
    "scale": "Tell how many replicas services need, or plan it.",
    "topology": "Show who publishes what and who reacts.",
    "contracts": "Export contracts, check them, ask whether a build may be deployed.",
    "conformance": "Try a program in any language against wire 1.0.",
    "deploy": "Write images, Compose files, Kubernetes manifests and pipelines.",
    "doctor": "Check configuration, files, connections and migrations.",
}


class _ClosedPipe(Exception):
    """The reader of the output has closed it. Not an OSError: click would exit with 1."""


class _Lazy(click.Group):
    """A group that imports a command's module only when it is called, so that others start fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"oyez.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ClosedPipe from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="oyez")
def root() -> None:
    """Event-driven microservices, from a laptop to a cluster on the same code."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; turn errors into one line and an exit code."""
    if sys.platform == "win32":
        click.echo("oyez: Windows is not supported: use Linux, in WSL 2 or a container", err=True)
        sys.exit(2)
    try:
        code = root.main(arguments, prog_name="oyez", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.exceptions.Exit as end:
        code = end.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except (BrokenPipeError, _ClosedPipe):
        # The reader has closed the output; Python would report that once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (ConfigurationError, DeclarationError) as error:
        click.echo(f"oyez: {error}", err=True)
        code = 2
    except OyezError as error:
        click.echo(f"oyez: {error}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
