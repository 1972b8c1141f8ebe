"""One description of what the gateway lets through, made of those of the services (OpenAPI 3.1).

What no route lets through is not in it, and neither is a component that only that refers to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from oyez.config import GatewaySettings, Route
from oyez.gateway.sessions import COOKIE, HOST

Node = dict[str, Any]
Rename = Callable[[str], str]
"""Returns what a reference such as ``#/components/schemas/Order`` is to be."""

METHODS = ("get", "put", "post", "delete", "head", "patch")

_SECTIONS = ("schemas", "responses", "parameters", "examples", "requestBodies", "headers")
_SHARED = ("summary", "description", "parameters")
# They lead to operations that may not be let through, or to addresses behind the gateway.
_DROPPED = ("servers", "callbacks", "security")
_REFERENCE = re.compile(r"#/components/([A-Za-z]+)/([A-Za-z0-9._-]{1,200})")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
# The keys of these objects are names that a service chose, not words of OpenAPI.
_OF_NAMES = frozenset(
    {
        *("properties", "patternProperties", "$defs", "dependentSchemas"),
        *("responses", "headers", "content", "examples", "encoding"),
    }
)
# Values that are shown, and not read.
_SHOWN = ("example", "default", "enum", "const", "value")
_PROBLEM = "Problem"


class Unusable(Exception):
    """A service's description can't be used; the message says why, for everybody to read."""


class Component(NamedTuple):
    """A part that others refer to: of which section, by which name, as a service has it."""

    section: str
    name: str


class Allowed:
    """What the routes let through, as templates of paths are to be judged by."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._at: dict[tuple[str, ...], dict[str, Route]] = {}
        for route in routes:
            methods = self._at.setdefault(_segments(route.path), {})
            methods.update(dict.fromkeys(route.methods, route))
            if "GET" in methods:
                methods.setdefault("HEAD", methods["GET"])

    def route(self, service: str, path: str, method: str) -> Route | None:
        """Return the route by which a path of a service is reached; None if none leads there.

        As in the gateway, the longest one decides; where a part of the path is a parameter, one
        that is longer leads elsewhere.
        """
        segments = _segments(path)
        for length in range(len(segments), -1, -1):
            methods = self._at.get(segments[:length])
            if methods is not None:
                route = methods.get(method)
                return route if route is not None and route.service == service else None
        return None


class Description:
    """What one service says of itself, as far as the gateway lets it through.

    Raises :class:`Unusable` for what is no OpenAPI 3.0 or 3.1, or refers to what it lacks.
    """

    def __init__(self, service: str, document: object, allowed: Allowed) -> None:
        self.service = service
        if not isinstance(document, dict):
            raise Unusable("its description is no object")
        version = document.get("openapi")
        if not isinstance(version, str) or not version.startswith(("3.0.", "3.1.")):
            raise Unusable("its description is not OpenAPI 3.0 or 3.1")
        self._document = document
        self._old = version.startswith("3.0.")
        self.components: dict[Component, Node] = {}
        self.tags = [each for each in _list(document.get("tags")) if _is_tag(each)]
        self.operations = dict(self._operations(allowed))
        for _, operation in self.operations.values():
            self._follow(operation)

    def _operations(self, allowed: Allowed) -> Iterable[tuple[tuple[str, str], tuple[Route, Node]]]:
        base = _base(self._document)
        for path, item in _object(self._document.get("paths")).items():
            place = base + path
            if not isinstance(item, dict) or not place.startswith("/"):
                continue
            for method in METHODS:
                operation = item.get(method)
                route = allowed.route(self.service, place, method.upper())
                if route is None or not isinstance(operation, dict):
                    continue
                shared = {name: item[name] for name in _SHARED if name in item}
                yield (place, method), (route, self._kept(shared, operation))

    def _kept(self, shared: Node, operation: Node) -> Node:
        kept = {name: value for name, value in operation.items() if name not in _DROPPED}
        own = _list(kept.get("parameters"))
        said = {_place_of(each) for each in own}
        above = [each for each in _list(shared.get("parameters")) if _place_of(each) not in said]
        kept = {**shared, **kept, "parameters": [*above, *own]}
        kept["tags"] = [each for each in _list(kept.get("tags")) if isinstance(each, str)]
        for name in ("parameters", "tags"):
            if not kept[name]:
                del kept[name]
        kept["responses"] = _object(kept.get("responses"))
        made: Node = _rewritten(kept, _same, old=self._old)
        for response in made["responses"].values():
            if isinstance(response, dict):
                response.pop("links", None)
        return made

    def _follow(self, node: Node) -> None:
        """Take the components that a part refers to, and those that these refer to."""
        found = _referred(node)
        while found:
            component = found.pop()
            if component in self.components:
                continue
            section = _object(_object(self._document.get("components")).get(component.section))
            body = section.get(component.name)
            if component.section not in _SECTIONS or not isinstance(body, dict | bool):
                raise Unusable(f"its description refers to {component.name}, which it lacks")
            made = _rewritten(body if isinstance(body, dict) else _plain(body), _same, self._old)
            if component.section == "responses":
                made.pop("links", None)
            self.components[component] = made
            found += _referred(made)


def merged(
    descriptions: Iterable[Description],
    settings: GatewaySettings,
    *,
    title: str,
    version: str,
    left_out: Mapping[str, str],
) -> Node:
    """Return one description of all; ``left_out`` says of services why they have no part in it."""
    known = list(descriptions)
    names, schemes = _names(known), _schemes(settings)
    paths: dict[str, Node] = {}
    components: dict[str, dict[str, Node]] = {"schemas": {_PROBLEM: _problem()}}
    twice, ids = _twice(known), set[str]()
    for each in known:
        rename = _renaming(names[each.service])
        for component, body in each.components.items():
            section = components.setdefault(component.section, {})
            section[names[each.service][component]] = _rewritten(body, rename)
        for (path, method), (route, operation) in each.operations.items():
            made = _rewritten(operation, rename)
            name = made.pop("operationId", None)
            if isinstance(name, str):
                name = f"{each.service}_{name}" if name in twice else name
                if name not in ids:
                    made["operationId"] = name
                    ids.add(name)
            made["security"] = _security(route, schemes, settings.login is not None)
            for status, text in _refusals(route).items():
                made["responses"].setdefault(status, _refusal(text))
            paths.setdefault(path, {})[method] = made
    components["securitySchemes"] = schemes
    document: Node = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": _about(left_out)},
        "paths": dict(sorted(paths.items())),
        "components": components,
    }
    used = {tag for item in paths.values() for op in item.values() for tag in op.get("tags", ())}
    tags = {each["name"]: each for service in known for each in service.tags}
    if tags := {name: tag for name, tag in tags.items() if name in used}:
        document["tags"] = list(tags.values())
    return document


def _names(known: list[Description]) -> dict[str, dict[Component, str]]:
    """Return the name of each component: its own, if all services that use it mean the same."""
    bodies: dict[Component, list[Node]] = {}
    for each in known:
        for component, body in each.components.items():
            bodies.setdefault(component, []).append(body)
    ours = Component("schemas", _PROBLEM)
    same = {each for each, found in bodies.items() if all(body == found[0] for body in found)}
    same -= {ours}
    while True:
        # What is the same in words, and refers to what is not, is not the same.
        differing = {
            each
            for each in same
            if len(bodies[each]) > 1 and not same.issuperset(_referred(bodies[each][0]))
        }
        if not differing:
            break
        same -= differing
    names: dict[str, dict[Component, str]] = {each.service: {} for each in known}
    taken = same | {ours}
    for each in known:
        for component in each.components:
            name = component.name
            if component not in same:
                name = f"{each.service}_{name}"
                while Component(component.section, name) in taken:
                    name += "_"
                taken.add(Component(component.section, name))
            names[each.service][component] = name
    return names


def _twice(known: Iterable[Description]) -> set[str]:
    """Return the ids of operations that several services have."""
    seen: set[str] = set()
    twice: set[str] = set()
    for each in known:
        own = {f"{operation.get('operationId')}" for _, operation in each.operations.values()}
        twice |= own & seen
        seen |= own
    return twice


def _rewritten(node: Any, rename: Rename, old: bool = False, *, names: bool = False) -> Any:
    """Return a part with its references changed; ``old``, in the words of 3.1 instead of 3.0.

    ``names``: the keys of this part are names. Its depth was bounded when it was read.
    """
    if isinstance(node, list):
        return [_rewritten(each, rename, old) for each in node]
    if not isinstance(node, dict):
        return node
    made: Node = {}
    for key, value in node.items():
        if names:
            made[key] = _rewritten(value, rename, old)
        elif key == "$ref" and isinstance(value, str):
            made[key] = rename(value)
        elif key.startswith("x-"):
            continue  # words of some tool, not for everybody
        elif key in _SHOWN or (key == "examples" and isinstance(value, list)):
            made[key] = value
        elif key == "mapping" and isinstance(value, dict):
            made[key] = {name: rename(_full(each)) for name, each in value.items()}
        else:
            made[key] = _rewritten(value, rename, old, names=key in _OF_NAMES)
    return _renewed(made) if old and not names else made


def _renewed(node: Node) -> Node:
    """Return a part of 3.0 in the words of 3.1, which are those of JSON Schema."""
    for word, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(word), bool) and node.pop(word) and bound in node:
            node[word] = node.pop(bound)
    if isinstance(node.get("nullable"), bool) and node.pop("nullable"):
        if isinstance(node.get("type"), str):
            node["type"] = [node["type"], "null"]
            if isinstance(node.get("enum"), list) and None not in node["enum"]:
                node["enum"] = [*node["enum"], None]
        elif node:
            node = {"anyOf": [node, {"type": "null"}]}
    return node


def _same(reference: str) -> str:
    return reference


def _renaming(names: Mapping[Component, str]) -> Rename:
    def rename(reference: str) -> str:
        component = _component(reference)
        return f"#/components/{component.section}/{names[component]}"

    return rename


def _referred(node: Node) -> list[Component]:
    found: list[Component] = []

    def note(reference: str) -> str:
        found.append(_component(reference))
        return reference

    _rewritten(node, note)
    return found


def _component(reference: str) -> Component:
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise Unusable("its description refers to what is not among its components")
    return Component(match[1], match[2])


def _full(name: object) -> str:
    """Return the reference that a discriminator means, which may be a name alone."""
    text = name if isinstance(name, str) else ""
    return f"#/components/schemas/{text}" if _NAME.fullmatch(text) else text


def _base(document: Node) -> str:
    """Return the path below which a service has its own."""
    servers = _list(document.get("servers"))
    url = servers[0].get("url") if servers and isinstance(servers[0], dict) else None
    path = re.sub(r"^[a-z]+://[^/]*", "", url) if isinstance(url, str) else ""
    return "" if "{" in path else path.rstrip("/")


def _about(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return "What the gateway lets through."
    lines = "\n".join(f"- {name}: {why}" for name, why in sorted(left_out.items()))
    return f"What the gateway lets through, without these services:\n\n{lines}"


def _schemes(settings: GatewaySettings) -> dict[str, Node]:
    schemes: dict[str, Node] = {
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": f"{HOST}{COOKIE}" if settings.tls else COOKIE,
            "description": "POST /session begins that of a visitor, a login that of a user.",
        }
    }
    if settings.keys is not None:
        schemes["key"] = {"type": "apiKey", "in": "header", "name": "X-Api-Key"}
    if settings.issuers or any(route.access == "user" for route in settings.routes):
        schemes["token"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    return schemes


def _security(
    route: Route, schemes: Mapping[str, Node], logins: bool
) -> list[dict[str, list[str]]]:
    if route.access == "session":
        # A visitor's session has no scopes and no roles.
        known = logins or not (route.scopes or route.roles)
        ways: tuple[str, ...] = ("session", "key", "token") if known else ("key", "token")
    else:
        users = ("token", "session") if logins else ("token",)
        ways = {"public": (), "key": ("key",), "user": users}[route.access]
    return [{way: list(route.scopes)} for way in ways if way in schemes]


def _refusals(route: Route) -> dict[str, str]:
    refusals = {}
    if route.access != "public":
        refusals["401"] = "Who sends it is not known."
    if route.scopes or route.roles:
        refusals["403"] = "The sender may not do this."
    return refusals


def _refusal(text: str) -> Node:
    schema = {"$ref": f"#/components/schemas/{_PROBLEM}"}
    return {"description": text, "content": {"application/problem+json": {"schema": schema}}}


def _problem() -> Node:
    texts = ("type", "title", "detail", "code")
    return {
        "type": "object",
        "description": "Why the gateway refuses a request (RFC 9457); code is for programs.",
        "required": [*texts, "status"],
        "properties": {
            **{each: {"type": "string"} for each in texts},
            "status": {"type": "integer"},
        },
    }


def _place_of(parameter: object) -> str:
    found = _object(parameter)
    return f"{found.get('$ref')} {found.get('in')} {found.get('name')}"


def _is_tag(tag: object) -> bool:
    return isinstance(tag, dict) and isinstance(tag.get("name"), str)


def _plain(schema: bool) -> Node:
    return {} if schema else {"not": {}}


def _object(value: object) -> Node:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _segments(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")[1:]) if path != "/" else ()
