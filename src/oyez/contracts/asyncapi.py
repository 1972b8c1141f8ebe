"""A service's contract as an AsyncAPI 3 document: what it sends and receives, on which channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from oyez.contracts.model import Published, ServiceContract
from oyez.contracts.reading import sample
from oyez.contracts.schema import Schema

VERSION = "3.0.0"
"""The version of AsyncAPI."""

_UNFIT = re.compile(r"[^A-Za-z0-9._-]")


def document(contract: ServiceContract, contracts: Mapping[str, ServiceContract]) -> dict[str, Any]:
    """Return a service's AsyncAPI document.

    ``contracts`` are those of the system: by them it is known on which channel a type arrives. The
    address of a channel is None where nobody is known to publish it.
    """
    made = _Document(contract.service)
    for name, published in contract.publishes.items():
        message = made.message(name, published.schema, _attributes(published))
        made.operation("send", f"send.{name}", published.stream, name, message)
    for read in contract.reads:
        streams = sorted(
            each.stream
            for owner in contracts.values()
            for name, each in owner.publishes.items()
            if name == read.type and each.to in (None, contract.service)
        )
        known: list[str | None] = [read.stream] if read.stream is not None else [*streams]
        attributes = {"x-oyez-version": read.version, "x-oyez-key": read.key}
        for handler in read.handlers:
            # A handler's own class is a message of its own: it has the fields that it needs.
            title = f"{read.type}.{handler}"
            message = made.message(title, read.schema, attributes, name=read.type)
            for stream in known or [None]:
                suffix = f".{stream}" if len(known) > 1 else ""
                made.operation("receive", f"{title}{suffix}", stream, title, message)
    return made.value()


class _Document:
    def __init__(self, service: str) -> None:
        self._service = service
        self._channels: dict[str, Any] = {}
        self._operations: dict[str, Any] = {}
        self._messages: dict[str, Any] = {}
        self._schemas: dict[str, Any] = {}

    def message(
        self, title: str, schema: Schema | None, attributes: dict[str, Any], name: str = ""
    ) -> str:
        """Add a message; return its reference."""
        ident = _ident(title)
        message: dict[str, Any] = {
            "name": name or title,
            "title": title,
            "contentType": "application/json",
            **{key: value for key, value in attributes.items() if value is not None},
        }
        if schema is not None:
            message["payload"] = self._hoisted(schema, ident)
            if "description" in schema:
                message["description"] = schema["description"]
            try:
                message["examples"] = [{"payload": sample(schema)}]
            except ValueError:
                pass  # a pattern has no example
        self._messages[ident] = message
        return f"#/components/messages/{ident}"

    def operation(
        self, action: str, title: str, stream: str | None, message: str, reference: str
    ) -> None:
        """Add an operation on a channel, which is made when it is first used."""
        channel = _ident(stream or f"unknown.{message}")
        ident = _ident(message)
        found = self._channels.setdefault(channel, {"address": stream, "messages": {}})
        found["messages"][ident] = {"$ref": reference}
        self._operations[_ident(title)] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{ident}"}],
        }

    def value(self) -> dict[str, Any]:
        """Return the document."""
        return {
            "asyncapi": VERSION,
            "info": {
                "title": self._service,
                "version": "1",
                "description": "Events are CloudEvents 1.0; the payload is their data.",
            },
            "defaultContentType": "application/json",
            "channels": self._channels,
            "operations": self._operations,
            "components": {"messages": self._messages, "schemas": self._schemas},
        }

    def _hoisted(self, schema: Schema, ident: str) -> Schema:
        """A schema whose parts are components of the document; references are to them."""
        parts = schema.get("$defs", {})
        names = {f"#/$defs/{each}": f"{ident}.{_ident(each)}" for each in parts}
        for name, part in parts.items():
            self._schemas[names[f"#/$defs/{name}"]] = _moved(part, names)
        top = {name: value for name, value in schema.items() if name != "$defs"}
        moved: Schema = _moved(top, names)
        return moved


def _moved(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        if value.get("$ref") in names:
            return {"$ref": f"#/components/schemas/{names[value['$ref']]}"}
        return {name: _moved(each, names) for name, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, names) for each in value]
    return value


def _attributes(published: Published) -> dict[str, Any]:
    return {
        "x-oyez-version": published.version,
        "x-oyez-key": published.key,
        "x-oyez-to": published.to,
        "x-oyez-personal": list(published.personal) or None,
    }


def _ident(name: str) -> str:
    return _UNFIT.sub("_", name)
