"""Settings: ``oyez.toml`` and the environment, read into frozen typed records.

A setting is one line in one of the classes below: its type, its default and the *rule* that says
what it may be. Everything else (unknown keys, the environment's name for it, the line in an error)
follows from that line. A field without a rule is filled in by this module and can't be set.

The environment wins over the file. ``OYEZ_BROKER`` is ``system.broker`` and so on for that table;
other tables are spelt out, ``OYEZ_GATEWAY_LISTEN`` or ``OYEZ_SERVICES_STOCK_ITEMS_HTTP`` (for the
service ``stock-items``). ``OYEZ_STORE`` is the store of every service. Within the file, ``${NAME}``
in a string is that variable of the environment and ``$$`` is a dollar sign.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import shlex
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar, get_args, get_origin

import msgspec

from oyez import adapters
from oyez.endpoint import redact
from oyez.errors import ConfigurationError
from oyez.sites import site

FILE = "oyez.toml"

_BROKERS = (
    "embedded",
    "memory",
    "kafka",
    "nats",
    "amqp",
    "amqps",
    "redis",
    "rediss",
    "sns+sqs",
    "postgresql",
)
_STORES = ("sqlite", "postgresql")
_STORAGES = ("folder", "s3", "postgresql")
_PLACES = {"embedded": "embedded:FILE", "sqlite": "sqlite:FILE", "folder": "folder:PATH"}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_TABLES_OF_ENVIRONMENT = ("system", "services", "gateway", "console")
_RESERVED_PATHS = ("/session", "/livez", "/readyz")

_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_APP = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9](?:[A-Za-z0-9.-]*))):([0-9]{1,5})")
_SEGMENTS = re.compile(r"/(?:[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*)?")
_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\*?")
_VARIABLE = re.compile(r"\$\$|\$\{([^}]*)\}|\$\{")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

Key = tuple[str | int, ...]
T = TypeVar("T", bound=msgspec.Struct)


class Listen(msgspec.Struct, frozen=True):
    """An address to listen at or to reach; port 0 lets the system choose a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: object) -> Listen:
        """From ``HOST:PORT`` or ``[IPv6]:PORT``; raises ``ValueError`` for anything else."""
        match = _LISTEN.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[3]) > 65535:
            raise ValueError(text)
        if match[1]:
            ipaddress.IPv6Address(match[1])
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Rule(NamedTuple):
    """What one setting may be.

    ``read`` turns a value of TOML into the setting or raises ``ValueError``; ``from_text`` first
    turns an environment variable into such a value.
    """

    expected: str
    read: Callable[[Any], Any]
    from_text: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()


def _pattern(expected: str, pattern: re.Pattern[str]) -> Rule:
    def read(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError
        return value

    return Rule(expected, read)


def _one_of(*choices: str) -> Rule:
    def read(value: object) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return Rule("one of " + ", ".join(f'"{each}"' for each in choices), read, choices=choices)


def _whole(low: int, high: int, unit: str = "") -> Rule:
    def read(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return Rule(f"a whole number{unit} from {low} to {high}", read, int)


def _number(high: float, unit: str) -> Rule:
    def read(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= high:
            raise ValueError
        return float(value)

    return Rule(f"a number of {unit} above 0, at most {high:g}", read, float)


def _truth() -> Rule:
    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    words = {"true": True, "false": False}
    return Rule("true or false", read, lambda text: words.get(text, text))


def _url(what: str, schemes: tuple[str, ...], others: str = "") -> Rule:
    """``others`` is the group of entry points that add schemes of other packages."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError
        scheme, colon, rest = value.partition(":")
        if colon and scheme not in schemes and others and scheme in adapters.found(others):
            if not rest:
                raise ValueError
            return value
        if not colon or scheme not in schemes:
            raise ValueError
        if scheme in _PLACES:
            complete = rest.strip("/") != ""
        elif scheme == "memory":
            complete = rest == ""
        else:
            complete = rest.startswith("//") and len(rest) > 2
        hosts = re.split(r"[/?#]", rest.rpartition("@")[2].removeprefix("//"))[0]
        ports = [] if scheme in _PLACES else re.findall(r":([0-9]+)(?:,|$)", hosts)
        if not complete or any(not 0 < int(port[:6]) < 65536 for port in ports):
            raise ValueError
        return value

    shapes = {**_PLACES, "memory": "memory:"}
    listed = ", ".join(shapes.get(each, f"{each}://…") for each in schemes)
    return Rule(f"a {what}: one of {listed}", read, choices=schemes)


def _text(expected: str) -> Rule:
    return _pattern(expected, re.compile(r".+"))


def _methods() -> Rule:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or any(each not in _METHODS for each in value):
            raise ValueError
        return tuple(dict.fromkeys(value))

    return Rule("a list of " + ", ".join(_METHODS), read)


def _streams() -> Rule:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError
        if any(not isinstance(each, str) or not _STREAM.fullmatch(each) for each in value):
            raise ValueError
        return tuple(dict.fromkeys(value))

    return Rule('a list of streams such as "shop.orders" or "shop.*"', read)


def _command() -> Rule:
    def read(value: object) -> tuple[str, ...]:
        words = shlex.split(value) if isinstance(value, str) else value
        if not isinstance(words, list) or not words or not words[0]:
            raise ValueError
        if any(not isinstance(word, str) for word in words):
            raise ValueError
        return tuple(words)

    return Rule("a command, as one string or as a list of strings", read)


_listen = Rule('an address "HOST:PORT", the port from 0 to 65535', Listen.parse)
_YEAR = 366 * 86400.0


class _Settings(msgspec.Struct, frozen=True, kw_only=True):
    def __rich_repr__(self) -> list[tuple[str, Any]]:
        values = [(field, getattr(self, field)) for field in self.__struct_fields__]
        return [(name, redact(v) if isinstance(v, str) else v) for name, v in values]

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({inside})"


class SystemSettings(_Settings, frozen=True, kw_only=True):
    """The table ``[system]``: what all processes of one system share."""

    name: Annotated[str, _pattern('a name such as "shop", [a-z][a-z0-9-]{0,40}', _NAME)]
    broker: Annotated[str, _url("broker", _BROKERS, adapters.BROKERS)] = "embedded:.oyez/events.db"
    partitions: Annotated[int, _whole(1, 4096)] = 8
    retention_days: Annotated[float, _number(36500, "days")] = 7.0
    claim_check: Annotated[str | None, _url("storage", _STORAGES)] = None
    claim_check_over: Annotated[int, _whole(0, 2**30, " of bytes")] = 0
    data: Annotated[str, _text("a folder")] = ".oyez"
    log: Annotated[Literal["console", "json"], _one_of("console", "json")] = "console"


class ServiceSettings(_Settings, frozen=True, kw_only=True):
    """A table ``[services.NAME]``. In ``store``, ``{service}`` stands for the service's name.

    ``broker`` is its own where it is not the system's: a bridge then carries streams across.
    ``http`` is where the service listens for requests, ``address`` where the gateway reaches it if
    that differs (another host or container). ``grace`` and ``lease`` are seconds.
    """

    name: str
    app: Annotated[str, _pattern('"module:attribute"', _APP)]
    broker: Annotated[str | None, _url("broker", _BROKERS, adapters.BROKERS)] = None
    store: Annotated[str, _url("store", _STORES, adapters.STORES)] = "sqlite:.oyez/{service}.db"
    replicas: Annotated[int, _whole(1, 256)] = 1
    http: Annotated[Listen | None, _listen] = None
    address: Annotated[Listen | None, _listen] = None
    admin: Annotated[Listen, _listen] = Listen("127.0.0.1", 0)
    grace: Annotated[float, _number(3600, "seconds")] = 10.0
    lease: Annotated[float, _number(3600, "seconds")] = 3.0

    def reached_at(self) -> Listen | None:
        """Where the gateway sends requests for it; None if it takes none."""
        if self.address or self.http is None:
            return self.address
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
        return Listen(everywhere.get(self.http.host, self.http.host), self.http.port)


class Route(_Settings, frozen=True, kw_only=True):
    """A table ``[[gateway.routes]]``: which requests may pass, to whom, and who may send them.

    ``path`` matches itself and everything below it, on whole segments. ``access`` "session" asks
    for an API key or a signed session, "public" for nothing. ``stream`` is for answers without an
    end, such as server-sent events: no total timeout.
    """

    path: Annotated[str, _pattern('a path such as "/orders"', _SEGMENTS)]
    service: Annotated[str, _text("the name of a service")]
    methods: Annotated[tuple[str, ...], _methods()] = ("GET", "HEAD")
    access: Annotated[Literal["public", "session"], _one_of("public", "session")] = "session"
    stream: Annotated[bool, _truth()] = False


class GatewaySettings(_Settings, frozen=True, kw_only=True):
    """The table ``[gateway]``. Limits are bytes, times are seconds.

    ``body_limit`` bounds one request body, ``buffer_limit`` all of them together, ``header_limit``
    the head of one request. ``timeout`` bounds reading a request, and again answering it;
    ``connect_timeout`` one attempt to reach a service. ``connections`` is how many clients stay
    connected: above it the one idle longest is let go. ``tls`` says that a TLS proxy stands in
    front. ``keys`` is a TOML file of hashed API keys, ``static`` a folder served at ``/``.
    """

    listen: Annotated[Listen, _listen] = Listen("127.0.0.1", 8080)
    static: Annotated[str | None, _text("a folder")] = None
    body_limit: Annotated[int, _whole(0, 2**40, " of bytes")] = 1_048_576
    buffer_limit: Annotated[int, _whole(0, 2**40, " of bytes")] = 67_108_864
    header_limit: Annotated[int, _whole(1024, 2**20, " of bytes")] = 16_384
    timeout: Annotated[float, _number(3600, "seconds")] = 10.0
    connect_timeout: Annotated[float, _number(60, "seconds")] = 1.0
    grace: Annotated[float, _number(3600, "seconds")] = 10.0
    connections: Annotated[int, _whole(1, 1_000_000)] = 1000
    session_lifetime: Annotated[float, _number(_YEAR, "seconds")] = 7 * 86400.0
    tls: Annotated[bool, _truth()] = False
    keys: Annotated[str | None, _text("a file")] = None
    routes: tuple[Route, ...] = ()


class ConsoleSettings(_Settings, frozen=True, kw_only=True):
    """The table ``[console]``."""

    listen: Annotated[Listen, _listen] = Listen("127.0.0.1", 8081)


class BridgeSettings(_Settings, frozen=True, kw_only=True):
    """A table ``[bridges.NAME]``: streams that are carried from one broker to another.

    ``streams`` are names, or beginnings of names such as ``shop.*``. ``store`` keeps how far it is;
    ``{bridge}`` in it stands for the bridge's name. ``grace`` and ``lease`` are seconds.
    """

    name: str
    source: Annotated[str, _url("broker", _BROKERS, adapters.BROKERS)]
    target: Annotated[str, _url("broker", _BROKERS, adapters.BROKERS)]
    streams: Annotated[tuple[str, ...], _streams()]
    store: Annotated[str, _url("store", _STORES, adapters.STORES)] = (
        "sqlite:.oyez/bridge-{bridge}.db"
    )
    admin: Annotated[Listen, _listen] = Listen("127.0.0.1", 0)
    grace: Annotated[float, _number(3600, "seconds")] = 10.0
    lease: Annotated[float, _number(3600, "seconds")] = 3.0

    def carries(self, stream: str) -> bool:
        """Whether the stream is one of those."""
        return any(
            stream.startswith(each[:-1]) if each.endswith("*") else stream == each
            for each in self.streams
        )


class Companion(_Settings, frozen=True, kw_only=True):
    """A table ``[companions.NAME]``: a process that ``oyez dev`` starts beside the services."""

    name: str
    run: Annotated[tuple[str, ...], _command()]


class Config(_Settings, frozen=True, kw_only=True):
    """Everything that was configured, checked. Relative files and folders start at ``root``."""

    path: Path
    root: Path
    places: Mapping[str, str]
    system: SystemSettings
    services: dict[str, ServiceSettings] = {}
    gateway: GatewaySettings | None = None
    console: ConsoleSettings | None = None
    bridges: dict[str, BridgeSettings] = {}
    companions: dict[str, Companion] = {}

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [each for each in super().__rich_repr__() if each[0] != "places"]

    def file(self, name: str) -> Path:
        """The file or folder that a setting names, relative to ``root`` unless absolute."""
        return self.root / name

    def error(self, key: str, expected: str, found: str) -> ConfigurationError:
        """An error about ``key`` (such as ``gateway.listen``) that names its file and line.

        For what shows only when a setting is used: a port in use, a folder that can't be written.
        """
        place = self.places.get(key)
        return _error(place or f"{self.path}", key, expected, found)


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read and check the settings.

    Without a ``path``, ``oyez.toml`` is looked for in the current folder and those above it; a
    folder means its ``oyez.toml``. ``environ`` is ``os.environ`` unless given. Raises
    :class:`ConfigurationError`, one line: place, key, what is allowed, what was found.
    """
    file = _locate(path)
    reader = _Reader(file, os.environ if environ is None else environ)
    config = reader.read(
        Config, path=file, root=Path(os.path.abspath(file)).parent, places=reader.places
    )
    reader.refuse_unknown_variables()
    services = {
        name: msgspec.structs.replace(each, store=each.store.replace("{service}", name))
        for name, each in config.services.items()
    }
    bridges = {
        name: msgspec.structs.replace(each, store=each.store.replace("{bridge}", name))
        for name, each in config.bridges.items()
    }
    config = msgspec.structs.replace(config, services=services, bridges=bridges)
    _check_names(reader, config)
    _check_bridges(reader, config)
    _check_routes(reader, config)
    return config


def read_file(path: Path, schema: type[T]) -> T:
    """Read another TOML file as ``schema``, with errors as good as those of :func:`load`.

    The environment plays no part and values are never shown in errors, so it suits secrets.
    """
    return _Reader(path, None).read(schema)


def _locate(path: Path | None) -> Path:
    try:
        if path is not None:
            return path / FILE if path.is_dir() else path
        here = Path.cwd()
        for folder in (here, *here.parents):
            if (folder / FILE).is_file():
                return folder / FILE
    except (OSError, ValueError) as error:
        raise _error(f"{path or '.'}", "", "a readable folder", f"{error}") from None
    raise _error(f"{here}", "", f"{FILE} in this folder or one above it", "none")


class _Reader:
    """Reads one TOML file into Structs by their rules; knows where each value came from."""

    def __init__(self, path: Path, environ: Mapping[str, str] | None) -> None:
        self.path = path
        self.environ = environ or {}
        self.secretive = environ is None
        self.places: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        text = self._text()
        self.raw = self._parse(text)
        self.lines = _lines(text)

    def read(self, schema: type[T], **given: Any) -> T:
        return self._table(schema, self.raw, (), given)

    def fail(self, key: Key, expected: str, found: str, hint: str | None = None) -> NoReturn:
        raise _error(self._place(key), _dotted(key), expected, found, hint)

    def refuse_unknown_variables(self) -> None:
        """Names of the environment that look like settings but are none are mistakes."""
        prefixes = tuple(f"OYEZ_{table.upper()}_" for table in _TABLES_OF_ENVIRONMENT)
        for name in sorted(self.environ):
            if name.startswith(prefixes) and name not in self.variables:
                guess = name.replace("OYEZ_SYSTEM_", "OYEZ_")
                known = list(self.variables)
                hint = guess if guess in known else _closest(guess, known)
                raise _error("environment", name, "a setting", "an unknown variable", hint)

    def _text(self) -> str:
        place = f"{self.path}"
        try:
            if self.path.exists() and not self.path.is_file():
                raise _error(place, "", "a file", "something else")
            return self.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            found = f"byte 0x{error.object[error.start]:02x}"
            raise _error(f"{place}:{line}", "", "UTF-8 text", found) from None
        except FileNotFoundError:
            raise _error(place, "", "a file", "none") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise _error(place, "", "a file that can be read", f"{reason}") from None

    def _parse(self, text: str) -> dict[str, Any]:
        try:
            return tomllib.loads(text)
        except RecursionError:
            found = "a value nested too deeply"
            raise _error(f"{self.path}", "", "a TOML file", found) from None
        except ValueError as error:
            message = f"{error}"
            at = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
            end = text.rstrip("\n").count("\n") + 1
            place = f"{self.path}:{at[1]}:{at[2]}" if at and at[1] else f"{self.path}:{end}"
            message = message[: at.start()] if at else message
            raise _error(place, "", "a TOML file", message) from None

    def _table(self, schema: type[T], raw: object, key: Key, given: dict[str, Any]) -> T:
        if not isinstance(raw, dict):
            self.fail(key, "a table", self._show(raw))
        self.places[_dotted(key)] = self._place(key)
        fields = {f.name: f for f in msgspec.structs.fields(schema) if _settable(f.type)}
        for name in raw:
            if name not in fields:
                known = f"one of {', '.join(fields)}"
                self.fail((*key, name), known, "an unknown key", _closest(name, fields))
        values = dict(given)
        for name, field in fields.items():
            found = self._value(field.type, raw.get(name), (*key, name))
            if found is not None:
                values[name] = found
            elif field.required:
                rule = _rule(field.type)
                expected = rule.expected if rule else "a table"
                self.fail((*key, name), expected, "nothing")
        return schema(**values)

    def _value(self, kind: Any, raw: object, key: Key) -> Any:
        """The setting of that type at ``key``, or None where nothing sets it."""
        rule = _rule(kind)
        if rule:
            return self._leaf(rule, raw, key)
        table = _struct(kind)
        if table:
            if raw is None and self._set_by_environment(key):
                raw = {}
            return None if raw is None else self._table(table, raw, key, {})
        if raw is None:
            return None
        if get_origin(kind) is tuple:
            if not isinstance(raw, list):
                self.fail(key, f"tables [[{_dotted(key)}]]", self._show(raw))
            of = get_args(kind)[0]
            return tuple(self._table(of, each, (*key, i), {}) for i, each in enumerate(raw))
        if not isinstance(raw, dict):
            self.fail(key, f"tables [{_dotted(key)}.NAME]", self._show(raw))
        of = get_args(kind)[1]
        return {name: self._named(of, name, each, (*key, name)) for name, each in raw.items()}

    def _named(self, schema: type[T], name: str, raw: object, key: Key) -> T:
        if not _NAME.fullmatch(name):
            self.fail(key, "a name [a-z][a-z0-9-]{0,40}", self._show(name))
        return self._table(schema, raw, key, {"name": name})

    def _leaf(self, rule: Rule, raw: object, key: Key) -> Any:
        self.places[_dotted(key)] = self._place(key)
        for variable in _variables(key):
            self.variables[variable] = _dotted(key)
            if variable in self.environ:
                return self._from_environment(rule, variable, key)
        if raw is None:
            return None
        try:
            return rule.read(self._expand(raw, key))
        except ValueError:
            self.fail(key, rule.expected, self._show(raw), _closest_scheme(raw, rule.choices))

    def _from_environment(self, rule: Rule, variable: str, key: Key) -> Any:
        self.places[_dotted(key)] = f"environment: {variable}"
        text = self.environ[variable]
        value: Any = text
        try:
            value = rule.from_text(text)
        except ValueError:
            pass
        try:
            return rule.read(_printable(value))
        except ValueError:
            found, hint = self._show(text), _closest_scheme(text, rule.choices)
            raise _error("environment", variable, rule.expected, found, hint) from None

    def _expand(self, raw: Any, key: Key) -> Any:
        if isinstance(raw, list):
            return [self._expand(each, key) for each in raw]
        if not isinstance(raw, str) or self.secretive:
            return raw

        def variable(match: re.Match[str]) -> str:
            name = match[1]
            if match.group() == "$$":
                return "$"
            if name is None:
                self.fail(key, "${NAME}, closed by a brace", self._show(raw))
            if name not in self.environ:
                hint = _closest(name, self.environ)
                self.fail(key, f"the environment variable {name}", "it is not set", hint)
            return self.environ[name]

        return _printable(_VARIABLE.sub(variable, raw))

    def _set_by_environment(self, key: Key) -> bool:
        if not _variables(key):
            return False
        prefix = "OYEZ_" + "_".join(str(part) for part in key).upper() + "_"
        return any(name.startswith(prefix) for name in self.environ)

    def _show(self, value: object) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, dict):
            return "a table"
        if isinstance(value, list):
            return "a list"
        if self.secretive:
            return "something else"
        if isinstance(value, str):
            text = redact(value)
            return f'"{text if len(text) <= 60 else text[:60] + "…"}"'
        if isinstance(value, int) and abs(value) >= 10**30:
            return "a very large number"
        return f"{value}"

    def _place(self, key: Key) -> str:
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}:{self.lines.get(key, 1)}"


def _error(
    place: str, key: str, expected: str, found: str, hint: str | None = None
) -> ConfigurationError:
    text = f"{place}: {key + ': ' if key else ''}expected {expected}, found {found}"
    if hint:
        text += f"; did you mean {hint}?"
    return ConfigurationError("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def _settable(kind: Any) -> bool:
    return _rule(kind) is not None or _struct(kind) is not None or get_origin(kind) in (dict, tuple)


def _rule(kind: Any) -> Rule | None:
    extras = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, Rule)), None)


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    options = get_args(kind) if get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    for option in options:
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def _variables(key: Key) -> tuple[str, ...]:
    """The environment's names for a setting, the strongest first; lists of tables have none."""
    if key[0] not in _TABLES_OF_ENVIRONMENT or any(isinstance(part, int) for part in key):
        return ()
    parts = key[1:] if key[0] == "system" else key
    name = "OYEZ_" + "_".join(str(part) for part in parts).upper().replace("-", "_")
    every_store = key[0] == "services" and key[-1] == "store"
    return (name, "OYEZ_STORE") if every_store else (name,)


def _printable(value: Any) -> Any:
    """Control characters and lone surrogates have no place in any setting."""
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(value)
    return value


def _dotted(key: Key) -> str:
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE_KEY.fullmatch(part) else f'"{part}"')
    return text


def _closest(name: str, known: Any) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1)
    return close[0] if close else None


def _closest_scheme(value: object, choices: tuple[str, ...]) -> str | None:
    scheme = value.partition(":")[0] if isinstance(value, str) else ""
    close = _closest(scheme, choices)
    return None if close == scheme else close


_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_KEYS = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_HEADER_LINE = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_KEYS})[ \t]*\]")
_VALUE_LINE = re.compile(rf"[ \t]*({_KEYS})[ \t]*=")


def _lines(text: str) -> dict[Key, int]:
    """Where each key of a valid TOML text first stands.

    A scan, not a parser: keys inside inline tables and lists are found at the line of the whole.
    """
    found: dict[Key, int] = {(): 1}
    counts: dict[Key, int] = {}
    table: Key = ()
    fence = ""
    for number, line in enumerate(text.split("\n"), 1):
        if fence:
            fence = "" if fence in line else fence
            continue
        key: Key = ()
        if header := _HEADER_LINE.match(line):
            table = ()
            for part in _parts(header[2]):
                if table in counts:
                    table = (*table, counts[table])
                table = (*table, part)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
            if table in counts:
                table = (*table, counts[table])
            key = table
        elif value := _VALUE_LINE.match(line):
            key = (*table, *_parts(value[1]))
            rest = line[value.end() :].lstrip()
            fence = rest[:3] if rest[:3] in ('"""', "'''") and rest.count(rest[:3]) == 1 else ""
        for length in range(1, len(key) + 1):
            found.setdefault(key[:length], number)
    return found


def _parts(keys: str) -> list[str]:
    return [_unquoted(part) for part in re.findall(_KEY, keys)]


def _unquoted(part: str) -> str:
    if part[0] not in "\"'":
        return part
    try:
        return str(tomllib.loads(f"part = {part}")["part"])
    except ValueError:  # what looked like a key was the inside of a long string
        return part


def _check_names(reader: _Reader, config: Config) -> None:
    for name in config.companions:
        if name in config.services:
            expected = "a name that no service has"
            reader.fail(("companions", name), expected, f'"{name}"')


def _check_bridges(reader: _Reader, config: Config) -> None:
    ends = {
        name: (site(bridge.source, config.root), site(bridge.target, config.root))
        for name, bridge in config.bridges.items()
    }
    for name, bridge in config.bridges.items():
        if name in config.services or name in config.companions:
            expected = "a name that no service and no companion has"
            reader.fail(("bridges", name), expected, f'"{name}"')
        source, target = ends[name]
        if source == target:
            expected = "another broker than the source"
            reader.fail(("bridges", name, "target"), expected, "the same")
        others = [ends[each.name] for each in config.bridges.values() if _overlap(each, bridge)]
        reached = {target}
        for _ in others:
            reached |= {end for start, end in others if start in reached}
        if source in reached:
            expected = "streams that no other bridge brings back to the source, in a circle"
            reader.fail(("bridges", name, "streams"), expected, ", ".join(bridge.streams))


def _overlap(one: BridgeSettings, other: BridgeSettings) -> bool:
    return any(other.carries(each) for each in one.streams) or any(
        one.carries(each) for each in other.streams
    )


def _check_routes(reader: _Reader, config: Config) -> None:
    taken: set[tuple[str, str]] = set()
    for index, route in enumerate(config.gateway.routes if config.gateway else ()):
        key: Key = ("gateway", "routes", index)
        dots = any(part in (".", "..") for part in route.path.split("/"))
        if dots or route.path in _RESERVED_PATHS:
            reader.fail((*key, "path"), "a path that the gateway doesn't use", f'"{route.path}"')
        service = config.services.get(route.service)
        if service is None:
            known = f"a service, one of {', '.join(config.services) or '(none)'}"
            hint = _closest(route.service, config.services)
            reader.fail((*key, "service"), known, f'"{route.service}"', hint)
        address = service.reached_at()
        if address is None or address.port == 0:
            expected = f'a service that listens: set http = "HOST:PORT" in services.{service.name}'
            found = "no http" if address is None else "port 0"
            reader.fail((*key, "service"), expected, found)
        for method in route.methods:
            if (route.path, method) in taken:
                expected = "each path and method once"
                reader.fail((*key, "path"), expected, f"{method} {route.path} again")
            taken.add((route.path, method))
