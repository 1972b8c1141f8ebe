"""Every public method is documented: by itself, or in the port that its class implements."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

import oyez

SOURCE = Path(oyez.__file__).parent
PORTS = {
    "ports.py": ["Broker", "Store", "StoreTransaction"],
    "brokers/claim_check/storage.py": ["Storage"],
    "runtime/reading.py": ["Consumer"],
    "service.py": ["Bound"],
    "ambient.py": ["Ambient"],
    "parameters.py": ["Parameter"],
}
MODULES = sorted(
    path.relative_to(SOURCE).as_posix()
    for path in SOURCE.rglob("*.py")
    if "template" not in path.parts
)

Method = ast.FunctionDef | ast.AsyncFunctionDef


def classes_of(text: str) -> list[ast.ClassDef]:
    """The public classes of a module, without those inside functions."""
    found = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return [node for node in found if not node.name.startswith("_")]


def methods_of(cls: ast.ClassDef) -> list[Method]:
    """The public methods and properties of a class, each overloaded one once."""
    found = [node for node in cls.body if isinstance(node, Method)]
    return [node for node in found if not (node.name.startswith("_") or is_overload(node))]


def is_overload(method: Method) -> bool:
    return any(
        isinstance(each, ast.Name) and each.id == "overload" for each in method.decorator_list
    )


def signature_of(method: Method) -> tuple[str, ...]:
    """The names of the method and its parameters: what makes it an implementation of another."""
    arguments = method.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return (method.name, *(argument.arg for argument in every))


def port_methods() -> set[tuple[str, ...]]:
    """The signatures of all methods of all ports."""
    return {
        signature_of(method)
        for module, names in PORTS.items()
        for cls in classes_of((SOURCE / module).read_text())
        if cls.name in names
        for method in methods_of(cls)
        if ast.get_docstring(method)
    }


def undocumented(text: str) -> list[str]:
    """The public methods of a module that neither it nor a port documents."""
    ports = port_methods()
    callbacks = {name for name in vars(asyncio.Protocol) if not name.startswith("_")} | {
        name for name in vars(asyncio.BaseProtocol) if not name.startswith("_")
    }
    return [
        f"{cls.name}.{method.name}"
        for cls in classes_of(text)
        for method in methods_of(cls)
        if not ast.get_docstring(method)
        and signature_of(method) not in ports
        and not (
            method.name in callbacks
            and any(ast.unparse(base) == "asyncio.Protocol" for base in cls.bases)
        )
        and not any(ast.unparse(each).endswith(".setter") for each in method.decorator_list)
    ]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_method_is_documented(module: str) -> None:
    assert undocumented((SOURCE / module).read_text()) == []


@pytest.mark.parametrize("port", [name for names in PORTS.values() for name in names])
def test_every_method_of_a_port_is_documented(port: str) -> None:
    module = next(module for module, names in PORTS.items() if port in names)
    (cls,) = (cls for cls in classes_of((SOURCE / module).read_text()) if cls.name == port)
    assert methods_of(cls)
    assert [each.name for each in methods_of(cls) if not ast.get_docstring(each)] == []


@pytest.mark.parametrize(
    ("method", "missing"),
    [
        ("async def ends(self, stream): pass", []),
        ("async def ends(self, topic): pass", ["Disk.ends"]),
        ("def spin(self): pass", ["Disk.spin"]),
        ("def spin(self): 'Spin.'", []),
        ("def _spin(self): pass", []),
        ("def data_received(self, data): pass", ["Disk.data_received"]),
    ],
)
def test_a_method_without_words_or_port_is_found(method: str, missing: list[str]) -> None:
    assert undocumented(f"class Disk:\n    {method}\n") == missing
