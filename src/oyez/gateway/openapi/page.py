"""The description as a page: without a script, and without anything from elsewhere.

What services say is shown as text, and escaped; nothing of it is read as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from oyez.gateway.http1 import Headers
from oyez.gateway.openapi.merged import METHODS, Node

_TEMPLATE = Path(__file__).with_name("reference.html")
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_DEEPEST = 5
"""Levels of a schema that are shown in one place."""
_LARGEST = 200
"""Values of an example that is made up: schemas that refer to each other have no end."""
_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matches {}",
}
_BETWEEN = {"oneOf": Markup(" or "), "anyOf": Markup(" or "), "allOf": Markup(" and ")}
_SENT = {
    "key": ("an API key", "-H 'X-Api-Key: KEY'"),
    "token": ("a token", "-H 'Authorization: Bearer TOKEN'"),
    "session": ("a session", "-b cookies.txt"),
}


class Field(NamedTuple):
    """A line about a value: a parameter, or a property of an object."""

    name: str
    where: str
    type: Markup
    required: bool
    text: str


class Body(NamedTuple):
    """What is sent or answered: of which media type, what it is, and its fields."""

    media: str
    type: Markup
    fields: list[Field]


class Result(NamedTuple):
    """An answer."""

    status: str
    text: str
    bodies: list[Body]


class Operation(NamedTuple):
    """A method of a path."""

    anchor: str
    method: str
    path: str
    title: str
    text: str
    deprecated: bool
    sender: str
    fields: list[Field]
    bodies: list[Body]
    results: list[Result]
    curl: str


class Schema(NamedTuple):
    """A schema that others refer to."""

    anchor: str
    name: str
    text: str
    type: Markup
    fields: list[Field]


class Page:
    """Makes the page of a description."""

    def __init__(self) -> None:
        source = _TEMPLATE.read_text()
        style = _STYLE.search(source)
        assert style is not None
        digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
        policy = (
            f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        self._headers: Headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", policy.encode()),
        ]
        self._template = jinja2.Environment(
            autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
        ).from_string(source)

    def of(self, document: Node, base: str) -> tuple[Headers, bytes]:
        """Return the headers and the body of the page; ``base`` is where the gateway is."""
        shown = _Shown(document, base)
        paths: dict[str, list[Operation]] = {}
        for each in shown.operations():
            paths.setdefault(each.path, []).append(each)
        html = self._template.render(
            info=document["info"], base=base, paths=paths, schemas=list(shown.schemas())
        )
        return self._headers, html.encode("utf-8", "replace")


class _Shown:
    """A description, as what its page shows."""

    def __init__(self, document: Node, base: str) -> None:
        self._paths = _object(document.get("paths"))
        self._components = _object(document.get("components"))
        self._base = base
        self._anchors: set[str] = set()
        self._left = 0

    def operations(self) -> Iterator[Operation]:
        for path, item in self._paths.items():
            for method in METHODS:
                if method in item:
                    yield self._operation(path, method, item[method])

    def schemas(self) -> Iterator[Schema]:
        for name, schema in sorted(_object(self._components.get("schemas")).items()):
            text = _text(_object(schema), "description")
            fields = list(self._fields(schema))
            yield Schema(f"schema-{name}", name, text, self._type(schema), fields)

    def _operation(self, path: str, method: str, said: Node) -> Operation:
        parameters = [self._found(each) for each in _list(said.get("parameters"))]
        bodies = _object(self._found(said.get("requestBody")).get("content"))
        results = _object(said.get("responses")).items()
        return Operation(
            anchor=self._anchor(f"{method}-{path}"),
            method=method.upper(),
            path=path,
            title=_text(said, "summary"),
            text=_text(said, "description"),
            deprecated=said.get("deprecated") is True,
            sender=_sender(said),
            fields=[self._parameter(each) for each in parameters],
            bodies=list(self._bodies(bodies)),
            results=[self._result(status, self._found(each)) for status, each in results],
            curl=self._curl(path, method, said, parameters, bodies),
        )

    def _parameter(self, said: Node) -> Field:
        name, where = _text(said, "name"), _text(said, "in")
        required = said.get("required") is True
        kind = self._type(said.get("schema", {}))
        return Field(name, where, kind, required, _text(said, "description"))

    def _result(self, status: str, said: Node) -> Result:
        bodies = self._bodies(_object(said.get("content")))
        return Result(status, _text(said, "description"), list(bodies))

    def _bodies(self, content: Node) -> Iterator[Body]:
        for media, said in content.items():
            schema = _object(said).get("schema", {})
            yield Body(media, self._type(schema), list(self._fields(schema)))

    def _fields(self, schema: object, before: str = "", depth: int = 0) -> Iterator[Field]:
        """Return the properties of an object, and those of objects within it by a path."""
        if not isinstance(schema, dict) or depth > _DEEPEST:
            return
        if isinstance(schema.get("items"), dict):
            yield from self._fields(schema["items"], f"{before}[]", depth + 1)
        for each in _list(schema.get("allOf")):
            yield from self._fields(each, before, depth + 1)
        required = _list(schema.get("required"))
        for name, of in _object(schema.get("properties")).items():
            path = f"{before}.{name}" if before else name
            text = _text(_object(of), "description")
            yield Field(path, "", self._type(of), name in required, text)
            yield from self._fields(of, path, depth + 1)

    def _type(self, schema: object, depth: int = 0) -> Markup:
        """Return what a value is, in words, with links to schemas that have a name."""
        if not isinstance(schema, dict) or depth > _DEEPEST:
            return Markup("nothing") if schema is False else Markup("anything")
        reference = schema.get("$ref")
        if isinstance(reference, str):
            name = reference.rpartition("/")[2]
            return Markup('<a href="#schema-{}">{}</a>').format(name, name)
        for word, between in _BETWEEN.items():
            if of := _list(schema.get(word)):
                return between.join(self._type(each, depth + 1) for each in of)
        if "const" in schema:
            return escape(_json(schema["const"]))
        if of := _list(schema.get("enum")):
            return escape(" or ".join(_json(each) for each in of))
        return self._plain_type(schema, depth)

    def _plain_type(self, schema: Node, depth: int) -> Markup:
        kinds = schema.get("type", "object" if "properties" in schema else "anything")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        shown = escape(" or ".join(f"{kind}" for kind in kinds))
        if "array" in kinds and "items" in schema:
            shown = Markup("{} of {}").format(shown, self._type(schema["items"], depth + 1))
        limits = [text.format(schema[word]) for word, text in _LIMITS.items() if word in schema]
        if isinstance(schema.get("format"), str):
            limits.insert(0, schema["format"])
        return Markup("{} ({})").format(shown, ", ".join(limits)) if limits else shown

    def _curl(
        self, path: str, method: str, said: Node, parameters: list[Node], bodies: Node
    ) -> str:
        asked = [each for each in parameters if each.get("required") is True]
        query = "&".join(
            f"{each.get('name')}={self._word(each)}" for each in asked if each.get("in") == "query"
        )
        lines = ["--head"] if method == "head" else []
        if method not in ("get", "head"):
            lines.append(f"-X {method.upper()}")
        lines.append(shlex.quote(f"{self._base}{path}{'?' if query else ''}{query}"))
        ways = {way for each in _list(said.get("security")) for way in each}
        lines += [sent for way, (_, sent) in _SENT.items() if way in ways][:1]
        lines += [
            "-H " + shlex.quote(f"{each.get('name')}: {self._word(each)}")
            for each in asked
            if each.get("in") == "header"
        ]
        if bodies:
            media = "application/json" if "application/json" in bodies else next(iter(bodies))
            lines.append("-H " + shlex.quote(f"Content-Type: {media}"))
            lines.append("-d " + shlex.quote(self._shown_body(_object(bodies[media]))))
        return "curl " + " \\\n  ".join(lines)

    def _shown_body(self, said: Node) -> str:
        if "example" in said:
            return _json(said["example"])
        for each in _object(said.get("examples")).values():
            found = self._found(each)
            if "value" in found:
                return _json(found["value"])
        return _json(self._made_up(said))

    def _word(self, parameter: Node) -> str:
        value = parameter["example"] if "example" in parameter else self._made_up(parameter)
        return value if isinstance(value, str) else _json(value)

    def _made_up(self, said: Node) -> Any:
        self._left = _LARGEST
        return self._example(said.get("schema"))

    def _example(self, schema: object, depth: int = 0) -> Any:
        """Return a value that a schema allows, more or less."""
        found = self._found(schema)
        for word in ("example", "const", "default"):
            if word in found:
                return found[word]
        for word in ("examples", "enum"):
            if of := _list(found.get(word)):
                return of[0]
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            return None
        for word in ("oneOf", "anyOf"):
            if of := _list(found.get(word)):
                return self._example(of[0], depth + 1)
        kind = found.get("type")
        kind = next(iter(kind), None) if isinstance(kind, list) else kind
        if kind == "array":
            return [self._example(found.get("items"), depth + 1)]
        if kind == "object" or "properties" in found or "allOf" in found:
            made: Node = {}
            for each in _list(found.get("allOf")):
                part = self._example(each, depth + 1)
                made |= part if isinstance(part, dict) else {}
            properties = _object(found.get("properties"))
            return made | {k: self._example(v, depth + 1) for k, v in properties.items()}
        return {"string": "string", "integer": 1, "number": 1.5, "boolean": True}.get(f"{kind}")

    def _found(self, said: object) -> Node:
        """Return a part, or what it refers to."""
        for _ in range(_DEEPEST):
            reference = _object(said).get("$ref")
            if not isinstance(reference, str):
                break
            _, _, section, name = reference.split("/")
            said = _object(self._components.get(section)).get(name)
        return _object(said)

    def _anchor(self, text: str) -> str:
        anchor = made = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
        number = 2
        while anchor in self._anchors:
            anchor, number = f"{made}-{number}", number + 1
        self._anchors.add(anchor)
        return anchor


def _sender(said: Node) -> str:
    ways: list[dict[str, list[str]]] = _list(said.get("security"))
    names = [_SENT[way][0] for each in ways for way in each]
    scopes = sorted({scope for each in ways for of in each.values() for scope in of})
    if not names:
        return "anybody"
    with_scopes = f", with {', '.join(scopes)}" if scopes else ""
    return f"whoever sends {' or '.join(names)}{with_scopes}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(said: Node, name: str) -> str:
    value = said.get(name)
    return value.strip() if isinstance(value, str) else ""


def _object(value: object) -> Node:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
