"""The contracts of a system as one page that needs no server, no script and no other file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from oyez.contracts.model import Published, Read, ServiceContract
from oyez.contracts.reading import outline, sample
from oyez.contracts.schema import Schema

_UNFIT = re.compile(r"[^a-z0-9-]+")


def page(contracts: Mapping[str, ServiceContract], system: Mapping[str, ServiceContract]) -> bytes:
    """Return the page of some services, in HTML.

    ``system`` are the contracts of all that are known: by them it is told who reads what. Whatever
    a contract says is shown as text.
    """
    made = _Page(contracts, system)
    style = _resource("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    names = sorted({each.system for each in contracts.values()})
    text = _template().render(
        system=", ".join(names),
        services=[made.service(each) for _, each in sorted(contracts.items())],
        style=Markup(style),  # noqa: S704 - our own file
        digest=f"sha256-{digest}",
    )
    return text.encode(errors="replace")


class _Page:
    def __init__(
        self, contracts: Mapping[str, ServiceContract], system: Mapping[str, ServiceContract]
    ) -> None:
        self._shown = contracts
        self._system = system

    def service(self, contract: ServiceContract) -> dict[str, Any]:
        publishes = sorted(contract.publishes.items())
        return {
            "id": _ident("service", contract.service),
            "name": contract.service,
            "publishes": [self._published(contract.service, *each) for each in publishes],
            "reads": [self._read(each) for each in contract.reads],
        }

    def _published(self, service: str, name: str, published: Published) -> dict[str, Any]:
        schema = published.schema
        return {
            "id": _ident("type", service, name),
            "name": name,
            "version": published.version,
            "text": [] if schema is None else str(schema.get("description", "")).split("``"),
            "stream": published.stream,
            "key": published.key,
            "to": published.to,
            "known": schema is not None,
            "rows": _rows(schema, published.key, published.personal),
            "example": _example(schema),
            "readers": [
                {
                    "service": reader,
                    "handlers": ", ".join(read.handlers),
                    "id": _ident("service", reader) if reader in self._shown else "",
                }
                for reader, contract in sorted(self._system.items())
                for read in contract.reads
                if read.type == name
                and published.to in (None, reader)
                and read.stream in (None, published.stream)
            ],
        }

    def _read(self, read: Read) -> dict[str, Any]:
        owners = [n for n, each in sorted(self._system.items()) if read.type in each.publishes]
        shown = [each for each in owners if each in self._shown]
        return {
            "id": _ident("type", shown[0], read.type) if shown else "",
            "name": read.type,
            "handlers": ", ".join(read.handlers),
            "publishers": ", ".join(owners),
            "version": read.version,
            "upcasts": ", ".join(map(str, read.upcasts)),
            "rows": _rows(read.schema, read.key, ()),
        }


def _rows(schema: Schema | None, key: str | None, personal: Iterable[str]) -> list[dict[str, Any]]:
    if schema is None:
        return []
    return [
        {
            "path": path.replace("?", ""),
            "optional": path.endswith("?"),
            "type": words,
            "key": path.replace("?", "") == key,
            "personal": path.replace("?", "") in personal,
        }
        for path, words in outline(schema).items()
    ]


def _example(schema: Schema | None) -> str:
    if schema is None:
        return ""
    try:
        value = sample(schema)
    except ValueError:
        return ""  # a pattern has no example
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _ident(*names: str) -> str:
    """An anchor: readable, and of its names alone."""
    plain = "-".join(_UNFIT.sub("-", name.lower()) for name in names)
    digest = hashlib.sha256("\0".join(names).encode(errors="replace")).hexdigest()[:6]
    return f"{plain}-{digest}"


@cache
def _template() -> jinja2.Template:
    made = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return made.from_string(_resource("page.html"))


def _resource(name: str) -> str:
    return (resources.files("oyez.contracts") / name).read_text()
