"""The site of a URL: the identity of its broker, the same for all spellings of the URL.

Names are not resolved, so ``localhost`` and ``127.0.0.1`` are two sites, and a subset of a
cluster's hosts is another site than all of them.

An adapter of another package defines its sites by an entry point under its scheme::

    [project.entry-points."oyez.sites"]
    pulsar = "oyez_pulsar:site"
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

from oyez import adapters
from oyez.endpoint import Endpoint
from oyez.errors import ConfigurationError

SITES = "oyez.sites"


class Site(Protocol):
    """The function that an entry point of ``oyez.sites`` names."""

    def __call__(self, url: str, *, root: Path) -> str:
        """Return the site of a URL; parameters and result as in `site`."""
        ...


class _Server(NamedTuple):
    """The parts of a server's URL that identify it."""

    kind: str
    port: int
    inside: Callable[[Endpoint, dict[str, str]], str]
    """The part of the server (database, account, …) that the URL and its options select."""


def site(url: str, root: Path) -> str:
    """Return a text that is the same for all URLs of one broker, and for no others.

    Relative files are relative to ``root``. The text is for comparison, not for display or
    connecting. An invalid URL is its own site. Raises ConfigurationError when the adapter of
    another package can't be imported.
    """
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme == "embedded":
        return f"embedded:{_file(root, rest)}"
    server = _SERVERS.get(scheme)
    if server is None:
        theirs: Site | None = adapters.load(SITES, scheme)
        return _normal(url) if theirs is None else theirs(url, root=root)
    try:
        endpoint = Endpoint(url, port=server.port)
    except ConfigurationError:
        return url
    query = url.partition("?")[2]
    inside = server.inside(endpoint, dict(parse_qsl(query, keep_blank_values=True)))
    return f"{server.kind}://{inside}"


def kind(url: str) -> str:
    """Return the kind of broker of a URL, the same with encryption and without."""
    scheme = url.partition(":")[0].lower()
    server = _SERVERS.get(scheme)
    return scheme if server is None else server.kind


def _hosts(endpoint: Endpoint) -> str:
    return ",".join(sorted({f"{_host(host)}:{port}" for host, port in endpoint.hosts}))


def _host(name: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(name).compressed}]"
    except ValueError:
        return name.lower()


def _file(root: Path, name: str) -> str:
    # Two leading slashes would be kept: POSIX leaves their meaning to the system.
    return os.path.realpath(root / re.sub("^//+", "/", name))


def _normal(url: str) -> str:
    """Return the URL without differences that never matter: case, order of options, secrets."""
    scheme, _, rest = url.partition(":")
    if not rest.startswith("//"):
        return f"{scheme.lower()}:{rest}"
    before, mark, query = rest[2:].partition("?")
    authority, slash, path = before.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    user = credentials.partition(":")[0]
    options = "&".join(sorted(query.split("&"), key=lambda option: option.partition("=")[0]))
    return f"{scheme.lower()}://{user}{at}{hosts.lower()}{slash}{path}{mark}{options}"


def _cluster(endpoint: Endpoint, options: dict[str, str]) -> str:
    return f"{_hosts(endpoint)}/{endpoint.path}"


def _account(endpoint: Endpoint, options: dict[str, str]) -> str:
    # The user determines the account, and accounts are isolated from each other.
    return f"{endpoint.user or ''}@{_cluster(endpoint, options)}"


def _vhost(endpoint: Endpoint, options: dict[str, str]) -> str:
    return f"{_hosts(endpoint)}/{endpoint.path or '/'}"


def _number(endpoint: Endpoint, options: dict[str, str]) -> str:
    path = endpoint.path or "0"
    return f"{_hosts(endpoint)}/{int(path) if path.isdecimal() else path}"


def _schema(endpoint: Endpoint, options: dict[str, str]) -> str:
    # Without a database in the URL it is that of the environment, or that named as the user.
    database = endpoint.path or f"?{endpoint.user or ''}"
    return f"{_hosts(endpoint)}/{database}/{options.get('schema', 'oyez')}"


def _region(endpoint: Endpoint, options: dict[str, str]) -> str:
    # The access key determines the account.
    regions = ",".join(sorted({host.lower() for host, _ in endpoint.hosts}))
    at = urlsplit(options.get("endpoint", ""))
    port = {"http": ":80", "https": ":443"}.get(at.scheme, "")
    host = at.netloc.lower().rpartition("@")[2].removesuffix(port)
    path = at.path.rstrip("/")
    return f"{endpoint.user or ''}@{regions}/{endpoint.path} {at.scheme}://{host}{path}"


_SERVERS = {
    "kafka": _Server("kafka", 9092, _cluster),
    "nats": _Server("nats", 4222, _account),
    "amqp": _Server("amqp", 5672, _vhost),
    "amqps": _Server("amqp", 5671, _vhost),
    "redis": _Server("redis", 6379, _number),
    "rediss": _Server("redis", 6379, _number),
    "sns+sqs": _Server("sns+sqs", 443, _region),
    "postgresql": _Server("postgresql", 5432, _schema),
}
