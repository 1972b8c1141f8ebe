"""The gateway's routes for another proxy, as far as that can hold them.

::

    plan.py     which routes are opened there, which are refused, and why
    nginx.py    a configuration of nginx
    envoy.py    a configuration of Envoy

What a proxy can't hold it must not open: a route whose sender it can't know, or whose limits it
can't keep, is refused there.
"""

from __future__ import annotations

from typing import NamedTuple

from oyez.config import Config
from oyez.gateway.export import envoy, nginx
from oyez.gateway.export.plan import Missing

PROXIES = {"nginx": nginx.write, "envoy": envoy.write}
"""What writes the file of each proxy."""

__all__ = ["PROXIES", "Exported", "Missing", "export"]


class Exported(NamedTuple):
    """A proxy's configuration, and what it lacks of the gateway's."""

    text: str
    missing: list[Missing]


def export(config: Config, proxy: str) -> Exported:
    """Return the gateway's configuration for one of `PROXIES`.

    Its head names all that is missing. Raises :class:`ConfigurationError` without ``[gateway]``.
    """
    if config.gateway is None:
        raise config.error("gateway", "a table [gateway]", "nothing")
    body, missing = PROXIES[proxy](config, config.gateway)
    head = [
        f"The gateway of {config.system.name}, for {proxy}. Written by `oyez gateway export`:",
        "change oyez.toml and write it again.",
        "",
        "Not held here:" if missing else "Nothing of it is missing here.",
        *(f"  {each}" for each in missing),
    ]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head)
    return Exported(f"{comment}\n{body}", missing)
