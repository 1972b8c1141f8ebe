"""What the outside servers share at the edge of the process: arguments, sockets, serving."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

import uvicorn
from starlette.applications import Starlette


def arguments(name: str, about: str, *, listen: str) -> argparse.ArgumentParser:
    """A parser that knows ``--listen`` and ``--data``; the caller adds its own options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m outside.{name}",
        description=about,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--listen", default=listen, metavar="HOST:PORT", help="HTTP address")
    parser.add_argument(
        "--data", type=Path, default=Path(".outside"), metavar="DIR", help="folder of the books"
    )
    return parser


def fail(name: str, problem: str) -> NoReturn:
    """Say in one line why the server can't start, and exit 2."""
    sys.stderr.write(f"{name}: {problem}\n")
    raise SystemExit(2)


def bind(name: str, address: str, *, option: str = "--listen") -> socket.socket:
    """A listening socket on ``HOST:PORT`` (port 0: any free one); exit 2 in one line if not."""
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
        fail(name, f"{option}: expected HOST:PORT, found {address!r}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        fail(name, f"{option}: can't listen on {address}: {error.strerror}; choose another")
    return listener


def announce(name: str, listener: socket.socket, scheme: str = "http") -> None:
    """Write the address to standard output: from now on connections are queued or served."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"{name}: {scheme}://{shown}:{port}\n")
    sys.stdout.flush()


async def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight get one second to end."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    await uvicorn.Server(config).serve(sockets=[listener])


def exit_zero_on_signals() -> None:
    """SIGTERM and SIGINT end the process with exit code 0.

    uvicorn takes both signals while it serves and raises them again when it has stopped, so
    without this the process would end as killed.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
