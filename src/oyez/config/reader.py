"""Reads a TOML file, and the environment, into settings by their rules."""

from __future__ import annotations

import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

import msgspec

from oyez.config.environment import given
from oyez.config.mistakes import Key, closest, closest_scheme, dotted, misfit, mistake
from oyez.config.places import lines
from oyez.config.rules import NAME, Rule
from oyez.endpoint import redact
from oyez.errors import ConfigurationError

T = TypeVar("T", bound=msgspec.Struct)

_TABLES_OF_ENVIRONMENT = ("system", "services", "gateway", "console")
_VARIABLE = re.compile(r"\$\$|\$\{([^}]*)\}|\$\{")


class Reader:
    """Reads one TOML file into Structs by their rules; knows where each value came from."""

    def __init__(self, path: Path, environ: Mapping[str, str] | None) -> None:
        self.path = path
        self.environ = environ or {}
        self.secretive = environ is None
        self.places: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        text = self._text()
        self.raw = self._parse(text)
        self.lines = lines(text)

    def read(self, schema: type[T], **given: Any) -> T:
        """Return the file as ``schema``; fields that can't be set are ``given``.

        Raises ConfigurationError, one line: place, key, what is allowed, what was found.
        """
        return self._table(schema, self.raw, (), given)

    def fail(self, key: Key, expected: str, found: str, hint: str | None = None) -> NoReturn:
        """Raise the ConfigurationError about ``key``, with the line on which it stands."""
        raise mistake(self._place(key), dotted(key), expected, found, hint)

    def refuse_unknown_variables(self) -> None:
        """Fail for a name of the environment that looks like a setting but is none."""
        prefixes = tuple(f"OYEZ_{table.upper()}_" for table in _TABLES_OF_ENVIRONMENT)
        for name in sorted(self.environ):
            if name.startswith(prefixes) and name not in self.variables:
                guess = name.replace("OYEZ_SYSTEM_", "OYEZ_")
                known = list(self.variables)
                hint = guess if guess in known else closest(guess, known)
                raise mistake("environment", name, "a setting", "an unknown variable", hint)

    def _text(self) -> str:
        place = f"{self.path}"
        try:
            if self.path.exists() and not self.path.is_file():
                raise mistake(place, "", "a file", "something else")
            return self.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            found = f"byte 0x{error.object[error.start]:02x}"
            raise mistake(f"{place}:{line}", "", "UTF-8 text", found) from None
        except FileNotFoundError:
            raise mistake(place, "", "a file", "none") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise mistake(place, "", "a file that can be read", f"{reason}") from None

    def _parse(self, text: str) -> dict[str, Any]:
        try:
            return tomllib.loads(text)
        except RecursionError:
            found = "a value nested too deeply"
            raise mistake(f"{self.path}", "", "a TOML file", found) from None
        except ValueError as error:
            message = f"{error}"
            at = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
            end = text.rstrip("\n").count("\n") + 1
            place = f"{self.path}:{at[1]}:{at[2]}" if at and at[1] else f"{self.path}:{end}"
            message = message[: at.start()] if at else message
            raise mistake(place, "", "a TOML file", message) from None

    def _table(self, schema: type[T], raw: object, key: Key, given: dict[str, Any]) -> T:
        if not isinstance(raw, dict):
            self.fail(key, "a table", self._show(raw))
        self.places[dotted(key)] = self._place(key)
        fields = {f.name: f for f in msgspec.structs.fields(schema) if _settable(f.type)}
        for name in raw:
            if name not in fields:
                known = f"one of {', '.join(fields)}"
                self.fail((*key, name), known, "an unknown key", closest(name, fields))
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
        """Return the setting of that type at ``key``, or None where nothing sets it."""
        rule = _rule(kind)
        if rule:
            found = self._leaf(rule, raw, key)
            if rule.leaving is not None and found is not None:
                rule.leaving.tell(self.places[dotted(key)])
            return found
        table = _struct(kind)
        if table:
            if raw is None and self._set_by_environment(key):
                raw = {}
            return None if raw is None else self._table(table, raw, key, {})
        if raw is None:
            return None
        if get_origin(kind) is tuple:
            if not isinstance(raw, list):
                self.fail(key, f"tables [[{dotted(key)}]]", self._show(raw))
            of = get_args(kind)[0]
            return tuple(self._table(of, each, (*key, i), {}) for i, each in enumerate(raw))
        if not isinstance(raw, dict):
            self.fail(key, f"tables [{dotted(key)}.NAME]", self._show(raw))
        of = get_args(kind)[1]
        return {name: self._named(of, name, each, (*key, name)) for name, each in raw.items()}

    def _named(self, schema: type[T], name: str, raw: object, key: Key) -> T:
        if not NAME.fullmatch(name):
            self.fail(key, "a name [a-z][a-z0-9-]{0,40}", self._show(name))
        return self._table(schema, raw, key, {"name": name})

    def _leaf(self, rule: Rule, raw: object, key: Key) -> Any:
        self.places[dotted(key)] = self._place(key)
        for variable in _variables(key):
            self.variables[variable] = dotted(key)
            if variable in self.environ:
                return self._from_environment(rule, variable, key)
        if raw is None:
            return None
        try:
            return _read(rule, self._expand(raw, key), self._place(key), dotted(key))
        except ValueError:
            hint = closest_scheme(raw, rule.choices())
            self.fail(key, rule.expected, self._found(rule, raw), hint)

    def _from_environment(self, rule: Rule, variable: str, key: Key) -> Any:
        self.places[dotted(key)] = f"environment: {variable}"
        text = self.environ[variable]
        value: Any = text
        try:
            value = rule.from_text(text)
        except ValueError:
            pass
        try:
            return _read(rule, _printable(value), "environment", variable)
        except ValueError:
            found, hint = self._found(rule, text), closest_scheme(text, rule.choices())
            raise mistake("environment", variable, rule.expected, found, hint) from None

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
            value = given(name, self.environ)
            if value is None:
                hint = closest(name, self.environ)
                self.fail(key, f"the environment variable {name}", "it is not set", hint)
            return value

        return _printable(_VARIABLE.sub(variable, raw))

    def _set_by_environment(self, key: Key) -> bool:
        if not _variables(key):
            return False
        prefix = "OYEZ_" + "_".join(str(part) for part in key).upper() + "_"
        return any(name.startswith(prefix) for name in self.environ)

    def _found(self, rule: Rule, value: object) -> str:
        return "something else" if rule.hidden else self._show(value)

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


def _read(rule: Rule, value: Any, place: str, key: str) -> Any:
    try:
        return rule.read(value)
    except ConfigurationError as error:
        raise misfit(place, key, error) from error


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
    """Return the environment's names for a setting, the strongest first.

    Lists of tables have none.
    """
    if key[0] not in _TABLES_OF_ENVIRONMENT or any(isinstance(part, int) for part in key):
        return ()
    parts = key[1:] if key[0] == "system" else key
    name = "OYEZ_" + "_".join(str(part) for part in parts).upper().replace("-", "_")
    every_store = key[0] == "services" and key[-1] == "store"
    return (name, "OYEZ_STORE") if every_store else (name,)


def _printable(value: Any) -> Any:
    """Return the value. Raises ``ValueError`` for control characters and lone surrogates."""
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(value)
    return value
