"""What a request costs the gateway itself: ``python -m benchmarks.gateway_profile``.

Client and service are transports in memory, so that no socket is in the figures: µs of CPU that a
GET takes on the event loop, the least of many rounds, which a busy machine changes little. Clients
repeat their headers, except where no two requests are alike. With ``--profile`` also where they go,
under cProfile; what is compiled has no names there.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.gateway import Load, configured, form, tokens
from benchmarks.http_peers import ANSWER
from oyez.ambient import SystemAmbient
from oyez.config import load
from oyez.gateway import gateway
from oyez.gateway.edge import Edge
from oyez.observe.metrics import Metrics
from oyez.runtime.interpreter import tune


class Loop(uvloop.Loop):
    """An event loop that reaches a service in memory, whatever the address."""

    async def create_connection(self, factory: Any, *_: Any, **__: Any) -> Any:
        """Connect to what answers every request at once."""
        protocol = factory()
        hear = protocol.data_received
        transport = Transport(lambda data: self.call_soon(hear, ANSWER))
        protocol.connection_made(transport)
        return transport, protocol


class Transport:
    """One end of a connection in memory: what is written to it is handed to a function."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write
        self._silent, self._other = os.pipe()

    def fileno(self) -> int:
        """Return what nothing arrives at."""
        return self._silent

    def get_extra_info(self, name: str) -> Any:
        """Return an address, or a socket."""
        return ("127.0.0.1", 1) if name == "peername" else self

    def get_write_buffer_size(self) -> int:
        """Return that all was sent."""
        return 0

    def is_closing(self) -> bool:
        """Return that it is open."""
        return False

    def abort(self) -> None:
        """Close it."""
        os.close(self._silent)
        os.close(self._other)


async def _serve(requests: list[bytes], load_: Load, count: int, metrics: bool) -> float:
    """Answer so many requests one after the other; return the seconds of CPU of each."""
    with tempfile.TemporaryDirectory(prefix="oyez-bench-") as folder:
        configured(Path(folder), load_, service=1, port=2)
        config, ambient = load(Path(folder), environ={}), SystemAmbient()
        assert config.gateway is not None
        tell = Metrics("gateway", service="gateway").count if metrics else None
        app = gateway(config, ambient, secret=b"x" * 32, tell=tell)
        await app.open()
        connection = Edge(config.gateway, ambient, app, app.refused).connection()
        loop, over, answered = asyncio.get_running_loop(), asyncio.Event(), 0
        hear = connection.data_received

        def wrote(data: bytes) -> None:
            nonlocal answered
            assert data.startswith(b"HTTP/1.1 200 "), data
            answered += 1
            if answered % count:
                loop.call_soon(hear, requests[answered % len(requests)])
            else:
                over.set()

        connection.connection_made(Transport(wrote))  # type: ignore[arg-type]
        for _ in range(2):  # at first without measuring, so that all that is kept is there
            over.clear()
            began = time.process_time()
            hear(requests[0])
            await over.wait()
            spent = time.process_time() - began
        connection.connection_lost(None)
        await app.close()
        return spent / count


def main() -> None:
    """Print the figures, and the profile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway_profile")
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--case", default="GET, metrics", help="what is profiled")
    options = parser.parse_args()
    tune()
    plain, held = Load("/orders", [""]), tokens(time.time())
    unlike = [
        each.replace(b"theme=dark", b"visit=%06d" % (64 * round_ + number))
        for round_ in range(64)
        for number, each in enumerate(plain.requests("GET"))
    ]
    cases: dict[str, Callable[[int], Coroutine[Any, Any, float]]] = {
        "GET": lambda count: _serve(plain.requests("GET"), held, count, False),
        "GET, metrics": lambda count: _serve(plain.requests("GET"), held, count, True),
        "GET, metrics, no two alike": lambda count: _serve(unlike, held, count, True),
        "POST, metrics": lambda count: _serve(plain.requests("POST"), held, count, True),
        "GET, metrics, JWT and limit": lambda count: _serve(
            held.requests("GET"), held, count, True
        ),
    }
    print(f"the gateway is {form()}; µs of CPU a request")
    for name, case in cases.items():
        least = min(_run(case(options.requests)) for _ in range(options.rounds))
        print(f"{name:32}{least * 1e6:8.1f}", flush=True)
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(_run, cases[options.case](10 * options.requests))
        pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(40)


def _run(main: Coroutine[Any, Any, float]) -> float:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)


if __name__ == "__main__":
    main()
