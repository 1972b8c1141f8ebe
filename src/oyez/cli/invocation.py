"""The invocation of commands: the event loop, and ``--json``."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

from oyez.runtime.audit import Actor

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
"""The option of every listing command."""
why_option = click.option("--why", default="", help="The reason; kept in the audit.")
"""The option of acts that can be undone; others require a reason."""


def actor(why: str) -> Actor:
    """Return who calls this command: the user of the process, on this machine."""
    user = os.getuid()
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:  # a container may run as a user that its files don't name
        name = f"uid {user}"
    return Actor(who=f"{name}@{socket.gethostname()}", via="command", why=why.strip())


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop, or asyncio's loop without it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
