"""The tracing of a process, from its start to its end.

Nothing of OpenTelemetry is imported before its environment asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from oyez.ambient import Ambient
from oyez.logger import Logger
from oyez.observe.environment import asked
from oyez.spans import Tracer


@contextmanager
def traced(
    ambient: Ambient, *, system: str, service: str, broker: str = ""
) -> Iterator[Tracer | None]:
    """Give what records the spans of this process, if its environment asks for that.

    The last spans are exported when the block ends. ``broker`` is its kind, such as ``kafka``.
    Raises ConfigurationError as `asked` does.
    """
    wanted = asked(os.environ)
    if wanted is None:
        yield None
        return
    try:
        from oyez.observe.tracing import tracing
    except ImportError as error:
        Logger().warning("no traces: install oyez[otel]", missing=error.name)
        yield None
        return
    tracer = tracing(wanted, ambient, system=system, service=service, broker=broker)
    try:
        yield tracer
    finally:
        tracer.close()
