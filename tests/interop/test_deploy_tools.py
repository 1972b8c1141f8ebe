"""What `oyez deploy` writes, judged by the tools that others judge it by: built by Go, once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".services-cache" / "deploy"
DEPLOYED = ROOT / "tests" / "unit" / "deployed"
KUBERNETES = "1.34.4"
CUSTOM = ("ScaledObject", "TriggerAuthentication", "PodMonitor", "Kustomization")
"""Kinds that Kubernetes itself does not have; `make deploy-test` applies KEDA's to a server."""


def go(*arguments: str, folder: Path | None = None, **environment: str) -> str:
    """Run Go and return what it prints; skip, and say why, where it can't."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    done = subprocess.run(
        ["go", *arguments],
        cwd=folder,
        env={**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"go {' '.join(arguments)}: {done.stderr.strip()[-300:]}")
    return done.stdout


def tool(name: str, package: str) -> Path:
    """Return a program of a Go module, built if need be."""
    program = TOOLS / "bin" / name
    if not program.exists():
        go("install", "-p", "2", package, GOBIN=str(TOOLS / "bin"))
    return program


def judged(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_nothing() -> None:
    program = tool("actionlint", "github.com/rhysd/actionlint/cmd/actionlint@v1.7.8")
    workflows = sorted((DEPLOYED / ".github" / "workflows").glob("*.yaml"))
    assert workflows
    judged(program, *workflows)


def test_kubeconform_finds_nothing(tmp_path: Path) -> None:
    program = tool("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0")
    manifests = sorted((DEPLOYED / "deploy" / "kubernetes").rglob("*.yaml"))
    assert manifests
    schemas(tmp_path)
    place = f"{tmp_path}/{{{{.ResourceKind}}}}.json"
    options = ["-strict", "-summary", "-schema-location", place, "-skip", ",".join(CUSTOM)]
    judged(program, *options, *manifests)
    wrong = tmp_path / "wrong.yaml"
    text = (DEPLOYED / "deploy/kubernetes/base/desk.yaml").read_text()
    wrong.write_text(text.replace("maxUnavailable: 0", "maxUnavailabel: 0"))
    done = subprocess.run([program, *options, wrong], capture_output=True, text=True, check=False)
    assert done.returncode == 1, "a key that is none must be found"
    assert "maxUnavailabel" in done.stdout + done.stderr


def schemas(folder: Path) -> None:
    """Write a strict JSON Schema for each kind, from Kubernetes' own description."""
    (folder / "go.mod").write_text("module schemas\n\ngo 1.23\n")
    told = go("mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES}", folder=folder)
    described = Path(json.loads(told)["Dir"]) / "api" / "openapi-spec" / "swagger.json"
    definitions = json.loads(described.read_text())["definitions"]
    for each in definitions.values():
        if "properties" in each:
            each.setdefault("additionalProperties", False)
        if each.get("format") == "int-or-string":
            each.clear()
            each["type"] = ["string", "integer"]
    text = "".join(path.read_text() for path in DEPLOYED.rglob("*.yaml"))
    for kind in set(re.findall(r"(?m)^kind: (\w+)$", text)) - {*CUSTOM}:
        named = [key for key, each in definitions.items() if _is(each, kind)]
        schema: dict[str, Any] = {"$ref": f"#/definitions/{named[-1]}", "definitions": definitions}
        (folder / f"{kind.lower()}.json").write_text(json.dumps(schema))


def _is(definition: dict[str, Any], kind: str) -> bool:
    kinds = definition.get("x-kubernetes-group-version-kind", ())
    return (
        any(
            each["kind"] == kind and each["version"] == "v1" and each["group"] != "events.k8s.io"
            for each in kinds
        )
        and len(kinds) == 1
    )
