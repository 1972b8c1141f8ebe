"""``oyez dev``: a whole system on one machine, one process per replica, one merged log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.text import Text
from watchfiles import PythonFilter, awatch

from oyez.cli.console import CODE
from oyez.cli.invocation import run_async
from oyez.cli.printing import console
from oyez.config import Config, ServiceSettings
from oyez.errors import NotCreated, OyezError
from oyez.inspection.form import escape
from oyez.inspection.scale import Outside
from oyez.listening import bind, stop_signals
from oyez.project import Project

_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green")
_LEVELS = {"warning": "yellow", "error": "bold red", "critical": "bold red"}
_RESTART = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_HEALTHY = 5.0
"""Seconds after which a process that dies is restarted without delay."""
_LOOK = 5.0
"""Seconds between two looks at how many replicas a service needs, at most."""
_LINE = 1_048_576


@click.command("dev")
@click.argument("project", required=False, type=click.Path(path_type=Path))
@click.option("--no-reload", is_flag=True, help="Do not restart services when code changes.")
@click.option("--json", "as_json", is_flag=True, help="Print the merged log as JSON lines.")
def command(project: Path | None, no_reload: bool, as_json: bool) -> None:
    """Run every service, the gateway and the companions of oyez.toml until Ctrl-C.

    A process that dies is restarted; a service restarts when its code changes. Of a service with
    ``replicas = "1..4"``, there are as many as its lag needs.
    """
    if project is not None:
        os.environ["OYEZ_PROJECT"] = str(project)
    config = Project.open().config
    check_addresses(config)
    run_async(supervise(config, reload=not no_reload, as_json=as_json))


def check_addresses(config: Config) -> None:
    """Raise ConfigurationError, naming the key, when an address is in use."""
    wanted = [
        (f"services.{name}.http", settings.http)
        for name, settings in config.services.items()
        if settings.http is not None
    ]
    if config.gateway is not None:
        wanted.append(("gateway.listen", config.gateway.listen))
    if config.console is not None:
        wanted.append(("console.listen", config.console.listen))
    for key, listen in wanted:
        bind(listen.host, listen.port, partial(config.error, key)).close()


async def supervise(config: Config, *, reload: bool, as_json: bool) -> None:
    """Run the system until SIGTERM or SIGINT, then stop it, the gateway first."""
    output = _Log(as_json)
    # For one sign-in by the link in the announcement. Only the console has it besides.
    code = secrets.token_urlsafe(24)
    children: list[_Child] = []
    tasks: list[asyncio.Task[None]] = []

    def start(name: str, command: list[str], watched: bool) -> _Child:
        child = _Child(name, command, config, output, watched, _secrets(name, code))
        children.append(child)
        tasks.append(asyncio.create_task(child.run(), name=child.name))
        return child

    stopped = asyncio.Event()
    with stop_signals(stopped.set):
        for each in _commands(config):
            start(*each)
        besides = [asyncio.create_task(_announce(config, tuple(children), output, code))]
        project = Project(config)
        besides += [
            asyncio.create_task(_scale(Outside(project, name), settings, start, children, output))
            for name, settings in config.services.items()
            if settings.replicas.least < settings.replicas.most
        ]
        if reload:
            besides.append(asyncio.create_task(_watch(config, children, output)))
        await stopped.wait()
        for task in besides:
            task.cancel()
        await asyncio.gather(*besides, return_exceptions=True)
        output.say("stopping")
        longest = max([12.0, *(_patience(each) for each in config.services.values())])
        for group in ("gateway", "console", "service", "companion"):
            await asyncio.gather(
                *(child.stop(longest) for child in children if child.group == group)
            )
        await asyncio.gather(*tasks, return_exceptions=True)
    output.say("stopped")


def _commands(config: Config) -> list[tuple[str, list[str], bool]]:
    python = [sys.executable, "-m", "oyez"]
    found = [
        (f"companion:{name}", _with_this_python(list(companion.run)), False)
        for name, companion in config.companions.items()
    ]
    for settings in config.services.values():
        found += [_replica(settings, number) for number in range(1, settings.replicas.least + 1)]
    found += [(f"service:{name}", [*python, "bridge", name], False) for name in config.bridges]
    if config.gateway is not None:
        found.append(("gateway:gateway", [*python, "gateway"], False))
    if config.console is not None:
        found.append(("console:console", [*python, "console"], False))
    return found


def _replica(settings: ServiceSettings, number: int) -> tuple[str, list[str], bool]:
    name = settings.name
    label = name if settings.replicas.most == 1 else f"{name}.{number}"
    return f"service:{label}", [sys.executable, "-m", "oyez", "run", name], True


def _patience(settings: ServiceSettings) -> float:
    """Return the seconds that a service has to stop."""
    return max(10.0, settings.grace) + 2.0


async def _scale(
    service: Outside,
    settings: ServiceSettings,
    start: Callable[[str, list[str], bool], _Child],
    children: list[_Child],
    output: _Log,
) -> None:
    """Start and stop replicas of a service by the rule, the newest first."""
    name = settings.name
    replicas = [child for child in children if child.name.rpartition(".")[0] == name]
    while True:
        await asyncio.sleep(min(_LOOK, settings.scaling.cooldown / 2))
        try:
            scale = await service.look()
        except NotCreated:
            continue
        except OyezError as error:
            output.line(name, {"level": "warning", "event": "not scaled", "error": str(error)})
            continue
        # Where some have not come up, or have died, the supervisor is at it already.
        if scale.replicas != len(replicas) or scale.wanted == len(replicas):
            continue
        output.say(f"{name}: {len(replicas)} to {scale.wanted} replicas: {scale.why}")
        while len(replicas) < scale.wanted:
            replicas.append(start(*_replica(settings, len(replicas) + 1)))
        while len(replicas) > scale.wanted:
            # Whoever ends the system meanwhile waits for those that are still among the children.
            await replicas[-1].stop(_patience(settings))
            children.remove(replicas.pop())


def _secrets(name: str, code: str) -> dict[str, str]:
    return {CODE: code} if name.startswith("console:") else {}


def _with_this_python(command: list[str]) -> list[str]:
    return [sys.executable, *command[1:]] if command[0] == "python" else command


class _Child:
    """A process that is restarted when it dies."""

    def __init__(
        self,
        name: str,
        command: list[str],
        config: Config,
        output: _Log,
        watched: bool,
        environment: Mapping[str, str],
    ) -> None:
        self.group, _, self.name = name.partition(":")
        self.command = command
        self.watched = watched
        self.ready = asyncio.Event()
        self._config = config
        self._environment = environment
        self._output = output
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._restarting = False

    async def run(self) -> None:
        """Start the process, and restart it until `stop`."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while not self._stopping:
            start = loop.time()
            code = await self._once()
            if self._stopping:
                return
            if self._restarting:
                self._restarting = False
                continue
            deaths = 0 if loop.time() - start > _HEALTHY else deaths + 1
            wait = _RESTART[min(deaths, len(_RESTART) - 1)]
            self._output.line(
                self.name, {"level": "warning", "event": f"ended ({_describe(code)}), restarting"}
            )
            await asyncio.sleep(wait)

    async def restart(self) -> None:
        """Terminate it, so that it restarts with the new code."""
        self._restarting = True
        self._signal(signal.SIGTERM)

    async def stop(self, longest: float) -> None:
        """Terminate it; kill it after ``longest`` seconds. Safe when called twice."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(longest):
                await process.wait()
        except TimeoutError:
            self._output.line(self.name, {"level": "error", "event": "did not stop: killed"})
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _once(self) -> int:
        environment = {
            **os.environ,
            "OYEZ_PROJECT": str(self._config.path),
            "OYEZ_LOG": "json",
            "OYEZ_DEV": "1",
            "PYTHONUNBUFFERED": "1",
            **self._environment,
        }
        process = self._process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self._config.root,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            limit=_LINE,
        )
        self._output.line(self.name, {"level": "debug", "event": "spawned", "pid": process.pid})
        assert process.stdout is not None
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:
                continue  # a line longer than the limit: its rest follows
            if not raw:
                break
            self._take(raw.decode("utf-8", "replace").rstrip())
        return await process.wait()

    def _take(self, text: str) -> None:
        fields: dict[str, Any]
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise TypeError
        except (ValueError, TypeError):
            fields = {"level": "info", "event": text}
        # A companion is any program: its first line counts.
        if fields.get("event") == "started" or self.group == "companion":
            self.ready.set()
        self._output.line(self.name, fields)


class _Log:
    """The merged log: a column for the process, one for the message, then the fields."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._console = console()
        self._colours: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Print a line of the supervisor itself."""
        self.line("oyez", {"level": "info", "event": text})

    def line(self, name: str, fields: dict[str, Any]) -> None:
        """Print a line of a process."""
        fields = {"process": name, **fields}
        if self._json:
            sys.stdout.write(json.dumps(fields) + "\n")
            sys.stdout.flush()
            return
        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        level = str(fields.get("level", "info"))
        if level == "debug":
            return
        text = Text()
        text.append(datetime.now().strftime("%H:%M:%S.%f")[:-3], style="dim")
        text.append(f" {name:>14} ", style=colour)
        text.append(escape(fields.get("event", "")), style=_LEVELS.get(level, ""))
        for key, value in fields.items():
            if key not in ("process", "level", "event", "timestamp", "service", "exception"):
                text.append(f" {key}=", style="dim")
                text.append(escape(value))
        if "exception" in fields:
            text.append("\n" + escape(fields["exception"], lines=True), style="dim")
        self._console.print(text)


async def _announce(config: Config, children: Sequence[_Child], output: _Log, code: str) -> None:
    for child in children:
        await child.ready.wait()
    where = f"http://{config.gateway.listen}/" if config.gateway is not None else "no gateway"
    output.say(f"{config.system.name} is up: {where}  (Ctrl-C stops it)")
    for name, companion in config.companions.items():
        if "--listen" in companion.run:
            listen = companion.run[companion.run.index("--listen") + 1]
            output.say(f"{name}: http://{listen}/")
    if config.console is not None:
        # The code works once, and for a while only, so that a log that is kept gives no access.
        output.say(f"console: http://{config.console.listen}/sign-in#{code}")


async def _watch(config: Config, children: list[_Child], output: _Log) -> None:
    async for changes in awatch(config.root, watch_filter=PythonFilter()):
        names = sorted({Path(path).name for _, path in changes})
        output.say(f"{', '.join(names)} changed: restarting the services")
        await asyncio.gather(*(child.restart() for child in children if child.watched))


def _describe(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"code {code}"


def _die_with_parent() -> None:
    # If the supervisor is killed, the system must not go on without it.
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
