"""Where a server is and how to reach it: one URL, read strictly.

``SCHEME://USER:PASSWORD@HOST:PORT,HOST:PORT/PATH?OPTION=VALUE``. What stands behind the question
mark are the adapter's own options, fields of one frozen class: an unknown name or an impossible
value is refused with what is allowed. Passwords never appear in an error.
"""

from __future__ import annotations

import difflib
import re
import ssl
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from oyez.errors import ConfigurationError

T = TypeVar("T", bound=msgspec.Struct)

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_](?:[A-Za-z0-9._-]*)))(?::([0-9]{1,5}))?")


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection is encrypted: paths of files in PEM format. Servers are always verified."""

    cafile: str | None = None
    """Authorities that may vouch for the server; the system's own unless given."""
    certfile: str | None = None
    """This client's certificate, where the server asks for one."""
    keyfile: str | None = None
    """The certificate's private key, unless it stands in ``certfile``."""

    def context(self) -> ssl.SSLContext:
        """For the standard library's sockets. Raises ConfigurationError for an unreadable file."""
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
    """What a URL says, apart from its options."""

    def __init__(self, url: str, *, port: int) -> None:
        """``port`` stands for one that is not given. Raises ConfigurationError."""
        self.url = redact(url)
        """The URL for people, without its secrets."""
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
        """The options as ``kind``; ``given`` are fields that the URL does not set.

        Raises ConfigurationError naming the option and what is allowed.
        """
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        allowed = [name for name in fields if name not in given]
        values = dict(given)
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

    def error(self, problem: str) -> ConfigurationError:
        """An error about this URL."""
        return ConfigurationError(f"{self.url}: {problem}")

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def _host(self, text: str, port: int) -> tuple[str, int]:
        match = _HOST.fullmatch(text)
        if match is None or not 0 < int(match[3] or port) < 65_536:
            raise self.error(f"expected HOST:PORT, the port from 1 to 65535, found {text!r}")
        return match[1] or match[2], int(match[3] or port)


def mistrust(error: BaseException) -> str:
    """Why a server's certificate was not accepted and what to do; empty for any other error.

    Looks at what caused the error too: drivers wrap it.
    """
    each: BaseException | None = error
    while each is not None:
        told = getattr(each, "verify_message", "")  # some drivers' errors only pose as this one
        if isinstance(each, ssl.SSLCertVerificationError) and told:
            return (
                f"its certificate is not trusted ({told}): set cafile to the "
                "authority that vouches for it, or use the name that it is for"
            )
        each = each.__cause__ or each.__context__
    return ""


def redact(url: str) -> str:
    """The text with every password, token or key of a URL in it replaced by ``***``.

    Errs on the side of hiding too much: the text need not be a well-formed URL.
    """
    start = re.match(r"(?:[^:/@\s]*:)?//|[A-Za-z][A-Za-z0-9+.-]*:", url)
    head = start.group() if start else ""
    credentials, at, rest = url[len(head) :].rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        url = f"{head}{user}:***@{rest}" if colon else f"{head}***@{rest}"
    secret = r"([?&;\s][^=&;\s]*(?:pass|pwd|secret|token|key|sig)[^=&;\s]*=)[^&;#\s]*"  # noqa: S105
    return re.sub(secret, r"\1***", url, flags=re.IGNORECASE)


def _convert(endpoint: Endpoint, name: str, text: str, kind: Any) -> Any:
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        problem = str(error).partition(" - at ")[0]
        raise endpoint.error(f"option {name}: {problem[0].lower()}{problem[1:]}") from None
