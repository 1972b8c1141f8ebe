"""What one setting may be."""

from __future__ import annotations

import base64
import ipaddress
import re
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from oyez import adapters, sites
from oyez.deprecation import Leaving
from oyez.errors import ConfigurationError

_STORAGES = ("folder", "s3", "postgresql")
_SHARED = ("sqlite", "postgresql", "redis", "rediss")
_PLACEHOLDER = re.compile(r"\{(?:service|bridge)\}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_APP = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9](?:[A-Za-z0-9.-]*))):([0-9]{1,5})")
_SEGMENTS = re.compile(r"/(?:[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*)?")
_TYPE = re.compile(r"[A-Za-z0-9._/-]{1,200}")
_SHOWN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,100}")
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_KEYS_AT = re.compile(r"https?://[^\s/@?#]+/[^\s@#]*")
_VISIBLE = re.compile(r"[\x21-\x7e]{1,1024}")
_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\*?")
# RFC 6749, section 3.3; a header shows it between quotation marks.
_SCOPE = re.compile(r"[!#-\[\]-~]{1,200}")
_TEXT = re.compile(r"\S(?:.{0,198}\S)?")
_ISSUER = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(?:/[^\s?#]*)?")
_KEY_SET = re.compile(
    r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[^\s#]*)?"
)
# As browsers write it: in lower case, without a path, and without the usual port of its scheme.
_ORIGIN = re.compile(
    r"(?!http://.*:80$)(?!https://.*:443$)"
    r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::[1-9][0-9]{0,4})?"
)
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'^_`|~+.-]{1,100}")
_ALGORITHMS = (
    *("RS256", "RS384", "RS512"),
    *("PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512"),
    "EdDSA",
)
_RATE = re.compile(r"([1-9][0-9]{0,5})/(s|min|h)")
_RANGE = re.compile(r"([0-9]{1,3})(?:\.\.([0-9]{1,3}))?")
_SECONDS = {"s": 1, "min": 60, "h": 3600}


Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_TYPES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,198}\*?")
_PRINCIPAL = re.compile(r"[a-z0-9-]{1,40}:[\x21-\x29\x2b-\x7e]{0,200}\*?")
_SOURCE = re.compile(r"(?:[\x21-\x29\x2b-\x7a\x7c\x7e]|\{(?:principal|subject)\}){1,300}(?:/\*)?")
_TEMPLATE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._/-]{0,100}"
    r"(?:\{(?:header:[A-Za-z0-9-]+|body:[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\}[A-Za-z0-9._/-]*)*"
)
_FIELD = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_LEAST_SECRET = 16
_VERSIONED = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,198}[A-Za-z0-9])?(?:@[1-9][0-9]{0,5})?")
_UNIX = re.compile(r"unix:[^:\s]{1,100}:/[\x21-\x22\x24-\x7e]{0,1000}")
_TOKEN = re.compile(r"[\x21-\x7e]{16,500}")
_BYTES = re.compile(r"[1-9][0-9]{0,6}(?:Mi|Gi)")
_CPU = re.compile(r"[1-9][0-9]{0,3}m?")
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_IMAGES = re.compile(r"[a-z0-9][a-z0-9._-]*(?::[0-9]{1,5})?(?:/[a-z0-9][a-z0-9._-]*)*")
_PEER = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*))(?:/[0-9]{1,3})?:[1-9][0-9]{0,4}"
)
_INSIDE = re.compile(r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)*")


class Listen(msgspec.Struct, frozen=True):
    """An address to listen at or to reach; port 0 lets the system choose a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: object) -> Listen:
        """Read ``HOST:PORT`` or ``[IPv6]:PORT``. Raises ``ValueError`` for anything else."""
        match = _LISTEN.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[3]) > 65535:
            raise ValueError(text)
        if match[1]:
            ipaddress.IPv6Address(match[1])
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Rate(msgspec.Struct, frozen=True):
    """So many requests in so many seconds."""

    count: int
    seconds: int

    @classmethod
    def parse(cls, text: object) -> Rate:
        """Read ``100/s``, ``600/min`` or ``5000/h``. Raises ``ValueError`` for anything else."""
        match = _RATE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(text)
        return cls(int(match[1]), _SECONDS[match[2]])

    def __str__(self) -> str:
        unit = next(unit for unit, seconds in _SECONDS.items() if seconds == self.seconds)
        return f"{self.count}/{unit}"


class Replicas(msgspec.Struct, frozen=True):
    """How many processes there are: from ``least`` to ``most``, as the load needs."""

    least: int
    most: int

    @classmethod
    def parse(cls, value: object) -> Replicas:
        """Read 2 or ``1..4``, from 1 to 256. Raises ``ValueError`` for anything else."""
        if type(value) is int:
            least, most = value, value
        else:
            match = _RANGE.fullmatch(value) if isinstance(value, str) else None
            if match is None:
                raise ValueError(value)
            least, most = int(match[1]), int(match[2] or match[1])
        if not 1 <= least <= most <= 256:
            raise ValueError(value)
        return cls(least, most)

    def __str__(self) -> str:
        return f"{self.least}" if self.least == self.most else f"{self.least}..{self.most}"


class Secret(msgspec.Struct, frozen=True):
    """A text that no error, log or page shows."""

    text: str

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("text", "***")]


class Rule(NamedTuple):
    """What one setting may be.

    ``read`` turns a value of TOML into the setting or raises ``ValueError``; ``from_text`` first
    turns an environment variable into such a value. ``choices`` are what a text, or the scheme of a
    URL, may be: errors propose the closest of them, and list them as ``shape`` has it. What is
    ``hidden`` is not shown in errors. What is ``leaving`` says so where it is set.
    """

    what: str
    read: Callable[[Any], Any]
    from_text: Callable[[str], Any] = str
    choices: Callable[[], tuple[str, ...]] = tuple
    shape: str = ""
    hidden: bool = False
    leaving: Leaving | None = None

    @property
    def expected(self) -> str:
        """What is allowed, for errors."""
        if not self.shape:
            return self.what
        return self.what + ", ".join(self.shape.format(each) for each in self.choices())


def pattern(expected: str, pattern: re.Pattern[str]) -> Rule:
    """Return the rule of a text that the pattern matches as a whole."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError
        return value

    return Rule(expected, read)


def one_of(*choices: str) -> Rule:
    """Return the rule of a text that is one of the choices."""

    def read(value: object) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return Rule("one of ", read, choices=lambda: choices, shape='"{}"')


def whole(low: int, high: int, unit: str = "") -> Rule:
    """Return the rule of a whole number from ``low`` to ``high``."""

    def read(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return Rule(f"a whole number{unit} from {low} to {high}", read, int)


def number(high: float, unit: str) -> Rule:
    """Return the rule of a number above 0 and at most ``high``, such as 2 or 0.5."""

    def read(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= high:
            raise ValueError
        return float(value)

    return Rule(f"a number of {unit} above 0, at most {high:g}", read, float)


def upto(high: float, unit: str) -> Rule:
    """Return the rule of a number from 0 to ``high``."""

    def read(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= high:
            raise ValueError
        return float(value)

    return Rule(f"a number of {unit} from 0 to {high:g}", read, float)


def share() -> Rule:
    """Return the rule of a share: a number from 0 to 1, such as 0.01."""

    def read(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError
        return float(value)

    return Rule("a share from 0 to 1", read, float)


def truth() -> Rule:
    """Return the rule of true or false."""

    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    words = {"true": True, "false": False}
    return Rule("true or false", read, lambda text: words.get(text, text))


def url(what: str, group: str) -> Rule:
    """Return the rule of a URL that an adapter of a group of entry points serves.

    Its ``read`` raises ConfigurationError, which says why, where the adapter can't read the URL.
    """

    def read(value: object) -> str:
        scheme, colon, _ = value.partition(":") if isinstance(value, str) else ("", "", "")
        if not isinstance(value, str) or not colon or not adapters.serves(group, scheme):
            raise ValueError
        return _readable(value)

    listed = partial(adapters.schemes, group)
    return Rule(f"a {what}: one of ", read, choices=listed, shape="{}:…")


def shared() -> Rule:
    """Return the rule of a URL of what the replicas of the gateway share."""

    def read(value: object) -> str:
        scheme, colon, _ = value.partition(":") if isinstance(value, str) else ("", "", "")
        if not isinstance(value, str) or not colon or scheme not in _SHARED:
            raise ValueError
        return _readable(value)

    what = "a store of the gateway: one of sqlite:PATH, postgresql://…, redis://…, rediss://…"
    return Rule(what, read, choices=lambda: _SHARED)


def _readable(url: str) -> str:
    """Return a URL. Raises ``ValueError``, or the ConfigurationError that says what is wrong."""
    try:
        sites.check(_PLACEHOLDER.sub("x", url))
    except ConfigurationError:
        if not url.partition(":")[2].strip("/"):
            raise ValueError from None
        raise
    return url


def storage() -> Rule:
    """Return the rule of a URL of a storage for data that is too large for the broker."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError
        scheme, _, rest = value.partition(":")
        hosts = re.split(r"[/?#]", rest.rpartition("@")[2].removeprefix("//"))[0]
        ports = re.findall(r":([0-9]+)(?:,|$)", hosts)
        if scheme == "folder":
            complete = rest.strip("/") != ""
        else:
            complete = rest.startswith("//") and len(rest) > 2
            complete = complete and all(0 < int(port[:6]) < 65536 for port in ports)
        if scheme not in _STORAGES or not complete:
            raise ValueError
        return value

    what = "a storage: one of folder:PATH, s3://…, postgresql://…"
    return Rule(what, read, choices=lambda: _STORAGES)


def text(expected: str) -> Rule:
    """Return the rule of a text that is not empty."""
    return pattern(expected, re.compile(r".+"))


def secret(what: str) -> Rule:
    """Return the rule of a text that is never shown."""

    def read(value: object) -> Secret:
        if not isinstance(value, str) or not value:
            raise ValueError
        return Secret(value)

    return Rule(what, read, hidden=True)


def address_of(what: str, *, path: bool) -> Rule:
    """Return the rule of the URL of a place in the web, with or without a path."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not is_web_address(value):
            raise ValueError
        if "?" in value or (urlsplit(value).path and not path):
            raise ValueError
        return value

    return Rule(what, read)


def is_web_address(url: str) -> bool:
    """Return whether a URL is https, or http on this machine, where nobody can listen."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if not _VISIBLE.fullmatch(url) or not parts.hostname or port == 0:
        return False
    plain = "@" not in parts.netloc and "#" not in url and "\\" not in url
    secure = parts.scheme == "https" or (parts.scheme == "http" and _is_here(parts.hostname))
    return plain and secure


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def methods() -> Rule:
    """Return the rule of a list of HTTP methods."""

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or any(each not in _METHODS for each in value):
            raise ValueError
        return tuple(dict.fromkeys(value))

    return Rule("a list of " + ", ".join(_METHODS), read)


def types() -> Rule:
    """Return the rule of a list of event types."""
    return _each("a list of event types", _TYPE)


def fields() -> Rule:
    """Return the rule of a list of fields of events' data."""
    return _each('a list of fields such as "reason"', _SHOWN)


def names() -> Rule:
    """Return the rule of a list of names of classes."""
    return _each('a list of classes such as "Gateway" or "shop.payments.Gateway"', _CLASS)


def networks() -> Rule:
    """Return the rule of a list of networks."""

    def read(value: object) -> tuple[Network, ...]:
        if not isinstance(value, list) or any(not isinstance(each, str) for each in value):
            raise ValueError
        return tuple(ipaddress.ip_network(each) for each in value)

    return Rule('a list of addresses and networks such as "10.0.0.0/8" or "::1"', read)


def limits() -> Rule:
    """Return the rule of a list of names of limits."""
    return _each("a list of names of [gateway.limits.NAME]", NAME)


def _each(expected: str, pattern: re.Pattern[str]) -> Rule:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError
        if any(not isinstance(each, str) or not pattern.fullmatch(each) for each in value):
            raise ValueError
        return tuple(dict.fromkeys(value))

    return Rule(expected, read)


def algorithms() -> Rule:
    """Return the rule of a list of algorithms by which an issuer signs: of key pairs alone.

    A secret that the gateway shared with an issuer would let it make tokens itself, and a public
    key that is taken for such a secret lets anybody.
    """

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or any(v not in _ALGORITHMS for v in value):
            raise ValueError
        return tuple(dict.fromkeys(value))

    return Rule("a list of " + ", ".join(_ALGORITHMS), read)


def audience() -> Rule:
    """Return the rule of a text, or a list of texts, for whom a token may be."""

    def read(value: object) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts:
            raise ValueError
        if any(not isinstance(each, str) or not _TEXT.fullmatch(each) for each in texts):
            raise ValueError
        return tuple(dict.fromkeys(texts))

    return Rule('an audience such as "shop", or a list of them', read)


def key_set() -> Rule:
    """Return the rule of where an issuer's keys are: a URL that nobody on the way can change."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError
        if "://" not in value:
            return value
        match = _KEY_SET.fullmatch(value)
        if match is None or (match[1] == "http" and not _loopback(match[2])):
            raise ValueError
        return value

    return Rule("an https URL, an http URL of this machine, or a file", read)


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def origins() -> Rule:
    """Return the rule of a list of origins, as browsers write them, or of ``["*"]``."""

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError
        if value == ["*"]:
            return ("*",)
        if any(not isinstance(each, str) or not _ORIGIN.fullmatch(each) for each in value):
            raise ValueError
        return tuple(dict.fromkeys(value))

    what = 'a list of origins such as "https://shop.example.com" (in lower case, without a path '
    return Rule(what + 'and the usual port), or ["*"]', read)


def streams() -> Rule:
    """Return the rule of a list of streams, or of beginnings of their names."""

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError
        if any(not isinstance(each, str) or not _STREAM.fullmatch(each) for each in value):
            raise ValueError
        return tuple(dict.fromkeys(value))

    return Rule('a list of streams such as "shop.orders" or "shop.*"', read)


def type_patterns() -> Rule:
    """Return the rule of a list of event types, or of beginnings of them."""
    return _each('a list of event types such as "iot.reading.taken" or "iot.reading.*"', _TYPES)


def principals() -> Rule:
    """Return the rule of a list of names of principals, or of beginnings of them."""
    return _each('a list of principals such as "key:meters" or "key:meter-*"', _PRINCIPAL)


def peers() -> Rule:
    """Return the rule of a list of places to connect to."""
    return _each('a list of HOST:PORT or NETWORK:PORT, such as "10.0.0.0/24:443"', _PEER)


def paths() -> Rule:
    """Return the rule of a list of files and folders of the project."""
    return _each('a list of paths inside of the project, such as "shared"', _INSIDE)


def classes() -> Rule:
    """Return the rule of a list of classes, each with its module."""
    return _each('a list of classes such as "iot.events:ReadingTaken"', _APP)


def sources() -> Rule:
    """Return the rule of a list of sources of events, or of what stands above them."""
    return _each('a list of sources such as "/meters/{subject}" or "/meters/*"', _SOURCE)


def secrets() -> Rule:
    """Return the rule of a secret, or of several, which its errors do not show.

    In the environment they stand with spaces between them.
    """

    def read(value: object) -> tuple[str, ...]:
        given = value if isinstance(value, list) else [value]
        found = tuple(each for each in given if isinstance(each, str))
        if not found or len(found) < len(given):
            raise ConfigurationError("expected a secret, or a list of secrets")
        if any(len(each) < _LEAST_SECRET for each in found):
            raise ConfigurationError(
                f"expected secrets of {_LEAST_SECRET} characters or more, found a shorter one"
            )
        return found

    return Rule("a secret, or a list of secrets", read, str.split)


def sink() -> Rule:
    """Return the rule of where events are posted to."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError
        if value.startswith("unix:"):
            if not _UNIX.fullmatch(value):
                raise ValueError
            return value
        parts = urlsplit(value)
        plain = "@" not in parts.netloc and "#" not in value and "\\" not in value
        if not (_VISIBLE.fullmatch(value) and plain and parts.hostname) or parts.port == 0:
            raise ValueError
        if parts.scheme not in ("http", "https"):
            raise ValueError
        return value

    return Rule('a URL "http://HOST:PORT/PATH", "https://HOST/PATH" or "unix:FILE:/PATH"', read)


def is_remote(url: str) -> bool:
    """Return whether what `sink` allows is not of this machine."""
    return not url.startswith("unix:") and not _is_here(urlsplit(url).hostname or "")


def signing() -> Rule:
    """Return the rule of secrets that sign, as Standard Webhooks writes them, which are not shown.

    In the environment they stand with spaces between them.
    """

    def read(value: object) -> tuple[Secret, ...]:
        given = value if isinstance(value, list) else [value]
        found = tuple(Secret(each) for each in given if isinstance(each, str))
        if not found or len(found) < len(given) or not all(_is_signing(s.text) for s in found):
            raise ValueError
        return found

    what = 'a secret "whsec_" with 24 to 64 bytes in base64, or a list of them'
    return Rule(what, read, str.split, hidden=True)


def _is_signing(text: str) -> bool:
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        return False
    return text.startswith("whsec_") and 24 <= len(key) <= 64


def token(what: str) -> Rule:
    """Return the rule of a token of a header, long enough that nobody guesses it; not shown."""

    def read(value: object) -> Secret:
        if not isinstance(value, str) or not _TOKEN.fullmatch(value):
            raise ValueError
        return Secret(value)

    return Rule(what, read, hidden=True)


def command() -> Rule:
    """Return the rule of a command and its arguments."""

    def read(value: object) -> tuple[str, ...]:
        words = shlex.split(value) if isinstance(value, str) else value
        if not isinstance(words, list) or not words or not words[0]:
            raise ValueError
        if any(not isinstance(word, str) for word in words):
            raise ValueError
        return tuple(words)

    return Rule("a command, as one string or as a list of strings", read)


ADDRESS = Rule('an address "HOST:PORT", the port from 0 to 65535', Listen.parse)
RATE = Rule('a rate such as "100/s", "600/min" or "5000/h", at most 999999', Rate.parse)
REPLICAS = Rule('a whole number from 1 to 256, or a range such as "1..4"', Replicas.parse)
TYPE = pattern("an event type", _TYPE)
APP = pattern('"module:attribute"', _APP)
PATH = pattern('a path such as "/orders"', _SEGMENTS)
KEYS_AT = pattern('a URL such as "http://gateway:8080/.well-known/jwks.json"', _KEYS_AT)
BYTES = pattern('a size such as "256Mi" or "1Gi"', _BYTES)
CPU = pattern('CPUs such as "100m" or "2"', _CPU)
NAMESPACE = pattern('a namespace such as "shop", [a-z0-9-]{1,63}', _NAMESPACE)
IMAGES = pattern('the beginning of images such as "registry.example.com/shop"', _IMAGES)
BROKER = url("broker", adapters.BROKERS)
STORE = url("store", adapters.STORES)
GATEWAY_STORE = shared()
STORAGE = storage()
ISSUER = pattern('a URL such as "https://login.example.com"', _ISSUER)
ISSUERS = _each("a list of issuers, the NAMEs of [gateway.issuers.NAME]", NAME)
AUDIENCE = audience()
ORIGINS = origins()
HEADERS = _each('a list of names of headers such as "Content-Type"', _HEADER)
JWKS = key_set()
ALGORITHMS = algorithms()
CLAIM = pattern('the name of a claim, or a path such as "realm_access.roles"', _TEXT)
CLAIMS = _each('a list of names of claims such as "email"', _TEXT)
SCOPES = _each('a list of scopes such as "orders:write"', _SCOPE)
ROLES = _each('a list of roles such as "clerk"', _TEXT)
EVENTS_OF = pattern('an event type such as "github.{header:x-github-event}"', _TEMPLATE)
FIELD = pattern('a field such as "order_id" or "repository.full_name"', _FIELD)
SINK = sink()
SIGNING = signing()
VERSIONED = _each(
    'a list of event types such as "shop.order.placed", or "shop.order.placed@2" up to a version',
    _VERSIONED,
)
BEARER = token("a token of 16 to 500 visible characters")
PROVIDER = address_of("a URL https://HOST/PATH, or http:// on this machine", path=True)
ORIGIN = address_of("a URL https://HOST:PORT, or http:// on this machine", path=False)
