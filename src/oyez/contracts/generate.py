"""Types for other languages and other repositories, made of a contract by the libraries for it.

A module has the types of what a service publishes: with a CloudEvents envelope and a function that
reads each in TypeScript, as msgspec's Structs in Python. They say what an event is, not in which
range: who reads it must not refuse more than it has to. Of a schema only known keywords reach a
library, and references to its own parts, since a contract may come from elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import keyword
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from oyez.contracts.model import Published, ServiceContract
from oyez.contracts.schema import Schema
from oyez.errors import ConfigurationError, OyezError

Language: TypeAlias = Literal["typescript", "python"]

SAFE_INTEGER = 2**53 - 1
"""The greatest integer that a number of JavaScript, and all below it, holds exactly."""


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """A module of types."""

    name: str
    """Its file: ``payments.ts``."""
    text: str
    warnings: tuple[str, ...] = ()
    """What the types can't tell, each with its place."""


def generate(language: Language, contract: ServiceContract) -> Module:
    """Return the types of what a service publishes.

    Runs the language's library, which for TypeScript is installed first, once for each user, by
    npm. Raises ConfigurationError where the library is missing, with the remedy, and OyezError
    where it fails.
    """
    told = {name: each for name, each in sorted(contract.publishes.items()) if each.schema}
    if not told:
        raise ConfigurationError(
            f"{contract.service} publishes no event that a schema tells: there is nothing to "
            "generate"
        )
    parts = _Parts({name: each.schema or {} for name, each in told.items()})
    make = _typescript if language == "typescript" else _python
    unknown = sorted(contract.publishes.keys() - told.keys())
    module = make(contract, told, parts)
    warnings = (f"{each}: has no schema, and is left out" for each in unknown)
    return msgspec.structs.replace(module, warnings=(*warnings, *module.warnings))


# -- the schemas -----------------------------------------------------------------------------------


_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_UNFIT = re.compile(r"[^A-Za-z0-9]+")
_TAKEN = {"Payload", "CloudEvent", "Misfit", "Schema", "SCHEMAS", "TYPES", "Error", "Object"}
_TYPES = {"string", "integer", "number", "boolean", "null", "array", "object"}


class _Parts:
    """The schemas of several types in one document, each part under a name of its own."""

    def __init__(self, told: Mapping[str, Schema]) -> None:
        self.defs: dict[str, Schema] = {}
        self.names: dict[str, str] = {}
        """The name of each type's class."""
        self._made: dict[str, str] = {}
        for kind, schema in told.items():
            self.names[kind] = self._name(schema, kind)
        for kind, schema in told.items():
            inner = schema.get("$defs", {})
            names = {name: self._part(name, inner) for name in inner}
            for name, made in names.items():
                self.defs[made] = {"title": made, **_plain(inner[name], names)}
            made = self.names[kind]
            self.defs[made] = {"title": made, **_plain(schema, names)}

    def document(self) -> Schema:
        """Return the document; its root is any of the types."""
        references = [{"$ref": f"#/$defs/{name}"} for name in self.names.values()]
        return {"title": "Payload", "anyOf": references, "$defs": self.defs}

    def _part(self, name: str, inner: Mapping[str, Any]) -> str:
        """The name of a part of a schema: that of an equal one, or a new one."""
        same = json.dumps([name, {each: inner[each] for each in _reached(name, inner)}])
        if same not in self._made:
            self._made[same] = self._name(inner[name], name)
        return self._made[same]

    def _name(self, schema: Schema, otherwise: str) -> str:
        title = schema.get("title")
        name = title if isinstance(title, str) and _NAME.fullmatch(title) else ""
        if not name:
            words = "".join(w[:1].upper() + w[1:] for w in _UNFIT.split(otherwise))
            name = words if _NAME.fullmatch(words) else f"Type{words}"
        made, number = name, 2
        while made in self.defs or made in _TAKEN or keyword.iskeyword(made):
            made, number = f"{name}{number}", number + 1
        self.defs[made] = {}  # holds the name
        return made


def _reached(name: str, inner: Mapping[str, Any]) -> list[str]:
    """The parts that a part refers to, and itself."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each not in found and each in inner:
            found.add(each)
            waiting += [ref.rpartition("/")[2] for ref in _references(inner[each])]
    return sorted(found)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _references(each)


def _plain(schema: Any, names: Mapping[str, str]) -> Schema:
    """What a schema says of the type of a value, in few keywords."""
    if not isinstance(schema, dict):
        return {}
    if "$ref" in schema:
        name = names.get(str(schema["$ref"]).rpartition("/")[2])
        return {} if name is None else {"$ref": f"#/$defs/{name}"}
    found: Schema = {}
    if isinstance(schema.get("description"), str):
        found["description"] = schema["description"]
    kinds = schema.get("type")
    if isinstance(kinds, list):
        found["anyOf"] = [_plain({**schema, "type": kind}, names) for kind in kinds]
        return found
    if kinds in _TYPES:
        found["type"] = kinds
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        found["enum"] = [each for each in values if isinstance(each, str | int | float | None)]
    form = _FORMATS.get(str(schema.get("format")))
    if form is not None:
        found["format"] = form
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(schema.get(name), list):
            each = [_plain(one, names) for one in schema[name]]
            several = [one for index, one in enumerate(each) if one not in each[:index]]
            found["anyOf" if name == "oneOf" else name] = each if name == "prefixItems" else several
    if found.get("anyOf", ()) and len(found["anyOf"]) == 1:
        found |= found.pop("anyOf")[0]
    if isinstance(schema.get("properties"), dict):
        fields = schema["properties"]
        found["properties"] = {name: _plain(each, names) for name, each in fields.items()}
        found["required"] = [name for name in schema.get("required", ()) if name in fields]
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            found[name] = _plain(schema[name], names)
    if "prefixItems" in found and "items" not in found:
        found |= {"items": False, "minItems": len(found["prefixItems"])}
        found["maxItems"] = found["minItems"]
    return found


_FORMATS = {
    **{name: name for name in ("date", "date-time", "decimal", "duration", "time", "uuid")},
    "date-time-local": "date-time",
    "time-local": "time",
}


# -- TypeScript ------------------------------------------------------------------------------------


def _typescript(contract: ServiceContract, told: Mapping[str, Published], parts: _Parts) -> Module:
    document = json.dumps(_items_of_tuples(parts.document()))
    types = _run(["node", "types.mjs"], document, folder=_installed())
    schemas = {
        name: _named_references({n: v for n, v in each.items() if n not in ("title", "minItems")})
        for name, each in parts.defs.items()
    }
    head = f"// {_MADE.format(language='typescript', service=_line(contract.service))}\n"
    text = [head, _resource("reading.ts"), types]
    text += [_reader(kind, each, parts.names[kind]) for kind, each in told.items()]
    text.append(f"const SCHEMAS: {{ [name: string]: Schema }} = {json.dumps(schemas, indent=2)};\n")
    wide = [
        f"{kind}: {path}: an integer may be beyond 2^53, which a number of TypeScript does not "
        "hold exactly: it is refused then; publish a text, or bound the field by "
        f"Meta(ge=…, le={SAFE_INTEGER})"
        for kind, each in told.items()
        for path in wide_integers(each.schema or {})
    ]
    name = f"{contract.service}.ts"
    return Module(name=name, text="\n".join(text), warnings=tuple(wide))


def _reader(kind: str, published: Published, name: str) -> str:
    key = "without a key" if published.key is None else f"ordered by {published.key}"
    where = f"version {published.version}, on the stream {published.stream}, {key}"
    text = _line(f"{kind}: {where}").replace("*/", "* /")
    return (
        f"/** {text}. */\n"
        f"export type {name}Event = CloudEvent<{json.dumps(kind)}, {name}>;\n\n"
        "/** Returns the event, its data checked; `data` may be text. Throws Misfit. */\n"
        f"export function parse{name}(event: CloudEvent): {name}Event {{\n"
        f"  return read(event, {json.dumps(kind)}, {published.version}, {json.dumps(name)});\n"
        "}\n"
    )


def _items_of_tuples(value: Any) -> Any:
    """The form of tuples that the library knows, which is that of older drafts."""
    if isinstance(value, list):
        return [_items_of_tuples(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {name: _items_of_tuples(each) for name, each in value.items()}
    if isinstance(found.get("prefixItems"), list):
        rest = found.get("items", False)
        found |= {"items": found.pop("prefixItems"), "additionalItems": rest}
    return found


def _named_references(value: Any) -> Any:
    if isinstance(value, list):
        return [_named_references(each) for each in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("$ref"), str):
        return {"$ref": value["$ref"].rpartition("/")[2]}
    return {
        name: _named_references(each)
        for name, each in value.items()
        if name != "description" or not isinstance(each, str)  # one of that name is a field
    }


def wide_integers(schema: Schema) -> list[str]:
    """Return the paths of a schema where an integer may be beyond `SAFE_INTEGER`."""
    return list(dict.fromkeys(_wide(schema, schema, "$", frozenset())))


def _wide(root: Schema, schema: Any, path: str, within: frozenset[str]) -> Iterator[str]:
    if not isinstance(schema, dict):
        return
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name and name not in within:
        yield from _wide(root, root.get("$defs", {}).get(name), path, within | {name})
    kinds = schema.get("type")
    if (kinds == "integer" or (isinstance(kinds, list) and "integer" in kinds)) and not (
        _bound(schema, "minimum", "exclusiveMinimum") >= -SAFE_INTEGER
        and _bound(schema, "maximum", "exclusiveMaximum") <= SAFE_INTEGER
    ):
        yield path
    for name, each in schema.get("properties", {}).items():
        yield from _wide(root, each, f"{path}.{name}", within)
    for name in ("anyOf", "oneOf", "allOf"):
        for each in schema.get(name, ()):
            yield from _wide(root, each, path, within)
    for index, each in enumerate(schema.get("prefixItems", ())):
        yield from _wide(root, each, f"{path}[{index}]", within)
    yield from _wide(root, schema.get("items"), f"{path}[]", within)
    yield from _wide(root, schema.get("additionalProperties"), f"{path}{{}}", within)


def _bound(schema: Schema, *names: str) -> float:
    nothing = math.inf if names[0] == "maximum" else -math.inf
    return next((schema[name] for name in names if name in schema), nothing)


def _installed() -> Path:
    """The folder where the library of TypeScript is, of exactly the versions of its lock."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise ConfigurationError(
                f"{program} is not installed: TypeScript's types are made by "
                "json-schema-to-typescript, which needs Node.js 20 or newer with npm"
            )
    files = {name: _resource(name) for name in ("package.json", "package-lock.json", "types.mjs")}
    digest = hashlib.sha256("".join(files.values()).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oyez"
    folder = home / f"typescript-{digest}"
    if folder.exists():
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as made:
            for name, text in files.items():
                (Path(made) / name).write_text(text)
            command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            _run(command, "", folder=Path(made), seconds=300)
            with contextlib.suppress(OSError):  # another process was faster
                (Path(made)).rename(folder)
                Path(made).mkdir()  # what the context removes
    except OSError as error:
        raise ConfigurationError(f"{home}: {error.strerror}: set XDG_CACHE_HOME") from error
    return folder


def _resource(name: str) -> str:
    return (resources.files("oyez.contracts") / "typescript" / name).read_text()


# -- Python ----------------------------------------------------------------------------------------


def _python(contract: ServiceContract, told: Mapping[str, Published], parts: _Parts) -> Module:
    if find_spec("datamodel_code_generator") is None:
        raise ConfigurationError(
            "datamodel-code-generator is not installed, which makes Python's types: "
            "pip install 'oyez[generate]'"
        )
    head = f"# {_MADE.format(language='python', service=_line(contract.service))}"
    made = _run(
        [sys.executable, "-m", "datamodel_code_generator", *_OPTIONS, "--custom-file-header", head],
        json.dumps(parts.document()),
    )
    types = "".join(
        f"    {json.dumps(kind)}: {parts.names[kind]},  # version {each.version}, "
        f"{'no key' if each.key is None else f'key {_line(each.key)}'}\n"
        for kind, each in told.items()
    )
    text = (
        f"{made.rstrip()}\n\nTYPES: dict[str, type[Struct]] = {{\n{types}}}\n"
        '"""The class of the data of each type of event."""\n'
    )
    return Module(name=f"{contract.service.replace('-', '_')}.py", text=text)


_OPTIONS = (
    *("--input-file-type", "jsonschema"),
    *("--output-model-type", "msgspec.Struct"),
    *("--target-python-version", "3.11"),
    *("--formatters", "builtin"),
    *("--enum-field-as-literal", "all"),
    *("--output-datetime-class", "datetime"),
    "--keyword-only",
    "--use-schema-description",
    "--use-standard-collections",
    "--use-union-operator",
    "--use-tuple-for-closed-arrays",
    "--use-msgspec-tagged-unions",
)


# -- the libraries ---------------------------------------------------------------------------------


_MADE = (
    "Made by `oyez contracts generate {language}` of the events that {service} publishes: make it "
    "anew, don't edit it."
)


def _line(text: str) -> str:
    """A text in a comment: of one line, whatever a contract says."""
    return "".join(each if each.isprintable() else " " for each in text)


def _run(
    command: list[str], text: str, *, folder: Path | None = None, seconds: float = 60.0
) -> str:
    """What a program prints. Raises OyezError with the end of what it complains about."""
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            command,
            cwd=folder,
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OyezError(f"{command[0]}: no end within {seconds:.0f} s") from error
    if done.returncode:
        raise OyezError(f"{' '.join(command[:3])}: {done.stderr.strip()[-500:]}")
    return done.stdout
