"""The invocation of commands: the event loop, and ``--json``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
"""The option of every listing command."""


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop, or asyncio's loop without it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
