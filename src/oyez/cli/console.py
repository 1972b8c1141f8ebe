"""``oyez console``: the console alone."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING

import click

from oyez.adapters import driver
from oyez.cli.invocation import run_async
from oyez.config import ConsoleSettings
from oyez.listening import HttpServer, bind, stop_signals
from oyez.logger import Logger, configure
from oyez.project import Project

if TYPE_CHECKING:
    from oyez.console.login import Login

CODE = "OYEZ_SIGN_IN_CODE"
"""The variable in which `oyez dev` passes the code of its sign-in link."""
_GRACE = 1.0


@click.command("console")
def command() -> None:
    """Serve the console until Ctrl-C: the system's state, its dead letters, and their cures.

    It listens at [console] of oyez.toml, by default at 127.0.0.1:8081, and asks the services at
    their admin ports.
    """
    project = Project.open()
    configure(project.config.system.log)
    run_async(_run(project, project.config.console or ConsoleSettings()))


async def _run(project: Project, settings: ConsoleSettings) -> None:
    from oyez.console.access import Access
    from oyez.console.app import console
    from oyez.console.system import System

    listen = settings.listen
    listener = bind(listen.host, listen.port, partial(project.config.error, "console.listen"))
    access = Access(
        project.ambient,
        name=project.config.system.name,
        token=project.token(),
        read_token=project.read_token(),
        code=os.environ.get(CODE),
        secure=settings.tls,
    )
    app = console(System(project), access, project.ambient, _login(project, settings))
    server = HttpServer(app, listener, grace=_GRACE)
    stopped = asyncio.Event()
    with stop_signals(stopped.set):
        await server.start()
        Logger().info("started", service="console", http=server.address)
        await stopped.wait()
        app.state.desk.live.closed = True
        await server.stop()


def _login(project: Project, settings: ConsoleSettings) -> Login | None:
    if settings.login is None:
        return None
    with driver("oyez[login]"):
        from oyez.console.login import Login
    name = project.config.system.name
    return Login(settings.login, project.ambient, name=name, secure=settings.tls)
