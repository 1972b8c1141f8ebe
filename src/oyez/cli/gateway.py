"""``oyez gateway``: the gateway alone."""

from __future__ import annotations

import click

from oyez.cli.invocation import run_async
from oyez.config import Listen
from oyez.errors import ConfigurationError
from oyez.gateway import serve
from oyez.logger import Logger, configure
from oyez.observe.metrics import Metrics
from oyez.observe.traced import traced
from oyez.observe.turning import Turning
from oyez.project import Project
from oyez.runtime.interpreter import settle, tune


@click.command("gateway")
def command() -> None:
    """Run the gateway alone; SIGTERM or Ctrl-C drains it."""
    project = Project.open()
    if project.config.gateway is None:
        raise ConfigurationError(f"{project.config.path}: there is no [gateway] table")
    configure(project.config.system.log)
    tune()
    run_async(_run(project))


async def _run(project: Project) -> None:
    metrics = Metrics("gateway", service="gateway")
    turning = Turning(metrics.turned)
    system = project.config.system.name
    with traced(project.ambient, system=system, service="gateway") as tracer:
        turning.start()
        try:
            await serve(
                project.config, project.ambient, ready=_ready, observer=metrics, tracer=tracer
            )
        finally:
            turning.stop()


def _ready(listen: Listen, admin: Listen) -> None:
    settle()
    Logger().info("started", service="gateway", http=str(listen), admin=str(admin))
