"""The contracts of a project: told from its code, read from its folder, written to files."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from oyez.contracts.asyncapi import document
from oyez.contracts.model import (
    FOLDER,
    ServiceContract,
    contract_of,
    decode,
    encode,
    is_contract,
    read_folder,
)
from oyez.errors import ConfigurationError
from oyez.project import Project
from oyez.service import Service

Style: TypeAlias = Literal["oyez", "jsonschema", "asyncapi", "html"]


def of_code(project: Project, services: Mapping[str, Service]) -> dict[str, ServiceContract]:
    """Return the contracts of imported services, by name."""
    system = project.config.system.name
    return {name: contract_of(each, system) for name, each in services.items()}


def of_others(project: Project) -> dict[str, ServiceContract]:
    """Return the contracts in the project's folder that are not of its own services.

    They are those of services in other repositories, put there to be checked against. Raises
    ConfigurationError.
    """
    found = read_folder(project.config.root / FOLDER)
    return {name: each for name, each in found.items() if name not in project.config.services}


def committed(root: Path, ref: str) -> dict[str, ServiceContract]:
    """Return the contracts of the project in a folder as they were committed, by service.

    Raises ConfigurationError.
    """
    if not ref or ref.startswith("-"):
        raise ConfigurationError(f"git:{ref}: expected a branch, a tag or a commit: git:main")
    listed = _git(root, "ls-tree", "--name-only", ref, "--", f"./{FOLDER}/").decode()
    found: dict[str, ServiceContract] = {}
    for line in listed.splitlines():
        name = Path(line).name
        if is_contract(name):
            data = _git(root, "show", f"{ref}:./{FOLDER}/{name}")
            contract = decode(data, f"git:{ref}:{FOLDER}/{name}")
            found[contract.service] = contract
    if not found:
        raise ConfigurationError(
            f"git:{ref}: there are no contracts in {FOLDER}/: commit what `oyez contracts export` "
            "writes"
        )
    return found


def files(
    style: Style, contracts: Mapping[str, ServiceContract], system: Mapping[str, ServiceContract]
) -> dict[str, bytes]:
    """Return the files of contracts in a style, by path within the folder of contracts.

    ``system`` are the contracts of all services that are known.
    """
    if style == "oyez":
        return {f"{name}.json": encode(each) for name, each in contracts.items()}
    if style == "html":
        from oyez.contracts.page import page  # its templates are for this alone

        return {"index.html": page(contracts, system)}
    if style == "asyncapi":
        return {
            f"asyncapi/{name}.json": _json(document(each, system))
            for name, each in contracts.items()
        }
    return {
        f"jsonschema/{name}/{kind.replace('/', '_')}.json": _json(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **published.schema}
        )
        for name, each in contracts.items()
        for kind, published in each.publishes.items()
        if published.schema is not None
    }


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"


def _git(root: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and a reference that is no option
            ["git", "-C", str(root), *arguments],  # noqa: S607 - that of the user
            capture_output=True,
            check=False,
            timeout=60,
        )
    except FileNotFoundError as error:
        raise ConfigurationError("git: is not installed: name a folder instead") from error
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise ConfigurationError(f"git: {text}")
    return done.stdout
