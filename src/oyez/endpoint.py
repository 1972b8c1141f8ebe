"""The URL of a server, parsed strictly: hosts, user, path and options.

``SCHEME://USER:PASSWORD@HOST:PORT,HOST:PORT/PATH?OPTION=VALUE``. The options are
the adapter's own, fields of one frozen class: an unknown name or an impossible value is refused
with an error that names what is allowed. Passwords never appear in an error.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import ssl
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from oyez.errors import ConfigurationError

T = TypeVar("T", bound=msgspec.Struct)

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_](?:[A-Za-z0-9._-]*)))(?::([0-9]{1,5}))?")


def limits(low: float, high: float, unit: str = "") -> msgspec.Meta:
    """Return the bounds of an option, inclusive, worded as in errors and in the guide.

    NaN and infinity are out of any bounds.
    """
    what = "a whole number" if isinstance(low, int) else "a number"
    what += f" of {unit}" if unit else ""
    told = f"{low:.15g} to {high:.15g}"
    extra = {"unit": unit, "range": told}
    return msgspec.Meta(ge=low, le=high, description=f"{what} from {told}", extra=extra)


Seconds = Annotated[float, limits(0.001, 86_400.0, "seconds")]
"""A deadline or a pause. Some servers would round a shorter one to 0 ms, which is no limit."""
Retention = Annotated[
    float,
    msgspec.Meta(
        gt=0,
        le=36_500 * 86_400.0,
        description="a number of seconds above 0, at most 3153600000",
        extra={"unit": "seconds", "range": "above 0, at most 3153600000"},
    ),
]
"""The retention of records."""
Count = Annotated[int, limits(1, 1_000_000)]
Some = Annotated[int, limits(0, 32_767)]
"""A number, where 0 stands for the adapter's own choice."""
Partitions = Annotated[int, limits(1, 4096)]
Bytes = Annotated[int, limits(1, 1_000_000_000, "bytes")]
BatchBytes = Annotated[int, limits(1000, 2**28, "bytes")]
"""The bytes that a reader prefetches, within the buffer sizes that drivers accept."""


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """The TLS settings of a connection: paths of PEM files. Servers are always verified."""

    cafile: str | None = None
    """The certificate authorities that are trusted; the system's own by default."""
    certfile: str | None = None
    """The client's certificate, for servers that require one."""
    keyfile: str | None = None
    """The certificate's private key, unless ``certfile`` contains it."""

    def context(self) -> ssl.SSLContext:
        """Return the standard library's TLS context.

        Raises ConfigurationError for an unreadable file.
        """
        try:
            context = ssl.create_default_context(cafile=self.cafile)
            if self.certfile is not None:
                context.load_cert_chain(self.certfile, self.keyfile)
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(name for name in (self.cafile, self.certfile, self.keyfile) if name)
            raise ConfigurationError(
                f"TLS: expected certificates in PEM format in {names}, found {error.strerror}"
            ) from error
        return context


class Endpoint:
    """The parts of a URL, apart from its options."""

    def __init__(self, url: str, *, port: int) -> None:
        """Parse the URL; ``port`` is the default port. Raises ConfigurationError."""
        self.url = redact(url)
        """The URL without its secrets, for messages."""
        if "://" not in url:
            raise self.error("expected SCHEME://HOST, found no ://")
        self.scheme, _, rest = url.partition("://")
        place, _, query = rest.partition("?")
        place, _, _ = place.partition("#")
        authority, _, path = place.partition("/")
        credentials, at, hosts = authority.rpartition("@")
        user, colon, password = credentials.partition(":")
        self.user: str | None = unquote(user) if at else None
        self.password: str | None = unquote(password) if colon else None
        self.path = unquote(path)
        """Without its first slash."""
        self.hosts = [self._host(host, port) for host in hosts.split(",")]
        """Host and port of each server; at least one."""
        self._query = query

    def options(self, kind: type[T], **given: Any) -> T:
        """Return the options as a ``kind``; ``given`` are fields that the URL does not set.

        Raises ConfigurationError naming the option and what is allowed.
        """
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        allowed = [name for name in fields if name not in given]
        values = {name: _convert(self, name, value, fields[name]) for name, value in given.items()}
        for name, text in parse_qsl(self._query, keep_blank_values=True):
            if name not in allowed:
                close = difflib.get_close_matches(name, allowed, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                listed = ", ".join(sorted(allowed)) or "none"
                raise self.error(f"option {name!r} is unknown{hint} Allowed: {listed}")
            if name in values:
                raise self.error(f"option {name} is given twice")
            values[name] = _convert(self, name, text, fields[name])
        return msgspec.convert(values, kind)

    @property
    def given(self) -> dict[str, str]:
        """The options that the URL sets, by name, unchecked."""
        return dict(parse_qsl(self._query, keep_blank_values=True))

    @property
    def servers(self) -> str:
        """The servers as one text, the same for any order and spelling of their hosts."""
        return ",".join(sorted({f"{_spelled(host)}:{port}" for host, port in self.hosts}))

    def error(self, problem: str) -> ConfigurationError:
        """Return an error that names this URL."""
        return ConfigurationError(f"{self.url}: {problem}")

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def _host(self, text: str, port: int) -> tuple[str, int]:
        match = _HOST.fullmatch(text)
        if match is None or not 0 < int(match[3] or port) < 65_536:
            # What the redacted URL hides may be the part of a password that looks like a host.
            found = f", found {text!r}" if text in self.url else ""
            raise self.error(f"expected HOST:PORT, the port from 1 to 65535{found}")
        return match[1] or match[2], int(match[3] or port)


def located(url: str, root: Path) -> str:
    """Return the file of a URL ``SCHEME:FILE`` as a real path, the same for all its spellings.

    ``root`` is the folder that a relative file starts from. Raises ConfigurationError for none.
    """
    scheme, _, name = url.partition(":")
    if not name.strip("/"):
        raise ConfigurationError(f"{redact(url)}: expected {scheme}:FILE")
    # Two slashes in front would stay: to POSIX they may mean something of their own.
    return os.path.realpath(root / re.sub("^//+", "/", name))


def mistrust(error: BaseException) -> str:
    """Return why a server's certificate was rejected, with the remedy; empty for any other error.

    The error's causes are searched too, since drivers wrap it.
    """
    each: BaseException | None = error
    while each is not None:
        told = getattr(each, "verify_message", "")  # some drivers' errors only pose as this one
        if isinstance(each, ssl.SSLCertVerificationError) and told:
            return (
                f"its certificate is not trusted ({told}): set cafile to the "
                "authority that issued it, or use the host name that it is for"
            )
        each = each.__cause__ or each.__context__
    return ""


def redact(url: str) -> str:
    """Return the text with every password, token or key of a URL in it replaced by ``***``.

    It rather hides too much: the text need not be a well-formed URL.
    """
    start = re.match(r"(?:[^:/@\s]*:)?//|[A-Za-z][A-Za-z0-9+.-]*:", url)
    head = start.group() if start else ""
    credentials, at, rest = url[len(head) :].rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        url = f"{head}{user}:***@{rest}" if colon else f"{head}***@{rest}"
    secret = r"([?&;\s][^=&;\s]*(?:pass|pwd|secret|token|key|sig)[^=&;\s]*=)[^&;#\s]*"  # noqa: S105
    return re.sub(secret, r"\1***", url, flags=re.IGNORECASE)


def _spelled(host: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(host).compressed}]"
    except ValueError:
        return host.lower()


def _convert(endpoint: Endpoint, name: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        for meta in getattr(kind, "__metadata__", ()):
            if meta.description:
                raise endpoint.error(
                    f"option {name}: expected {meta.description}, found {value!r}"
                ) from None
        problem = str(error).partition(" - at ")[0]
        raise endpoint.error(f"option {name}: {problem[0].lower()}{problem[1:]}") from None
