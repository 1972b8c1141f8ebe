"""The site of a URL: the identity of its broker, the same for all spellings of the URL.

Names are not resolved, so ``localhost`` and ``127.0.0.1`` are two sites, and a subset of a
cluster's hosts is another site than all of them.

An adapter defines the sites of its URLs by an entry point under their scheme::

    [project.entry-points."oyez.sites"]
    pulsar = "oyez_pulsar:site"

The function is called where nothing is connected, so its module should not import the driver.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from oyez import adapters
from oyez.endpoint import redact
from oyez.errors import ConfigurationError


class Site(Protocol):
    """The function that an entry point of ``oyez.sites`` names."""

    def __call__(self, url: str, *, root: Path) -> str:
        """Return the site of a URL; parameters and result as in `site`.

        It begins with the kind of broker and a colon; several schemes may have one kind, such as
        with and without encryption. Raises ConfigurationError for a URL that can't be read.
        """
        ...


def site(url: str, root: Path) -> str:
    """Return a text that is the same for all URLs of one broker, and for no others.

    Relative files are relative to ``root``. The text is for comparison, not for display or
    connecting. An invalid URL is its own site. Raises ConfigurationError when the adapter can't be
    imported.
    """
    function = _function(url)
    if function is None:
        return _normal(url)
    try:
        return function(url, root=root)
    except ConfigurationError:
        return url


def check(url: str) -> None:
    """Check that the adapter for the URL's scheme can read it. Raises ConfigurationError."""
    function = _function(url)
    if function is not None:
        function(url, root=Path())
    elif not url.partition(":")[2]:
        raise ConfigurationError(f"{redact(url)}: expected something behind the colon")


def kind(url: str) -> str:
    """Return the kind of broker of a URL, the same with encryption and without.

    It is the scheme unless the adapter gives another. Raises ConfigurationError when the adapter
    can't be imported.
    """
    named, colon, _ = site(url, Path()).partition(":")
    return (named if colon else url.partition(":")[0]).lower()


def _function(url: str) -> Site | None:
    function: Site | None = adapters.load(adapters.SITES, url.partition(":")[0].lower())
    return function


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
