"""The systems that are deployed: copies of projects for this node, with their manifests."""

from __future__ import annotations

import copy
import json
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world import NODE, Failed, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TAG = "unreleased"
OVERLAY = "deploy/kubernetes/overlays/test"
OUTSIDE = {
    "SHOP_PROVIDER": f"http://{NODE}:8090",
    "SHOP_SMTP": f"{NODE}:8025",
    "SHOP_SMS": f"http://{NODE}:8091",
}
"""Where the shop finds what is outside of it; the node runs that."""

DEPLOY = """
[deploy]
registry = "localhost/shop"
broker = "nats://broker.servers.svc:4222"
store = "postgresql://store.servers.svc:5432/oyez"
gateway_store = "postgresql://store.servers.svc:5432/oyez"
"""
_APP = re.compile(r'^(app = ".*")$', re.MULTILINE)
_OUTSIDE = re.compile(r"^(run = .*)$", re.MULTILINE)
_LOCAL = re.compile(r"127\.0\.0\.1(?=:80(?:90|26|25|91|92)\b)")


def shop_settings(text: str) -> str:
    """Return the shop's ``oyez.toml`` for this node: two replicas, servers, the outside here."""
    text = _APP.sub(r"\1\nreplicas = 2", text)
    text = _OUTSIDE.sub(lambda run: _LOCAL.sub(NODE, run[0]), text)
    return text + DEPLOY


@dataclass(frozen=True)
class Deployed:
    """A project with its generated manifests."""

    name: str
    folder: Path
    images: Path
    """The archives of its images, one a part."""
    secrets: Mapping[str, Mapping[str, str]]
    """The keys of each Secret that the manifests refer to."""
    parts: tuple[str, ...]
    """The parts that have an image."""

    @property
    def namespace(self) -> str:
        """The namespace of everything in it."""
        return self.name

    @property
    def overlay(self) -> Path:
        """What `kubectl apply -k` takes."""
        return self.folder / OVERLAY


def prepare(name: str, work: Path) -> Deployed:
    """Return a project's copy below ``work``, with its generated manifests."""
    folder = work / name
    if folder.exists():
        return _found(name, work)
    source = ROOT / "examples" / "shop" if name == "shop" else HERE / name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".oyez", "__pycache__", "tests"))
    if name == "shop":
        settings = folder / "oyez.toml"
        settings.write_text(shop_settings(settings.read_text()))
    said = _oyez(folder, "deploy", "kubernetes", "--overlay", "test", "--json")
    (folder / "deployed.json").write_text(said)
    overlay = folder / OVERLAY / "kustomization.yaml"
    overlay.write_text(overlay.read_text() + _patches(name))
    return _found(name, work)


def _found(name: str, work: Path) -> Deployed:
    folder = work / name
    overlay = (folder / OVERLAY / "kustomization.yaml").read_text()
    parts = dict.fromkeys(re.findall(r"newName: localhost/\w+/([a-z-]+)", overlay))
    wanted = json.loads((folder / "deployed.json").read_text())["secrets"]
    return Deployed(name, folder, work / "images" / name, wanted, tuple(parts))


def build(deployed: Deployed, say: Callable[[str], None]) -> None:
    """Build the images of a project's parts, each as an archive."""
    deployed.images.mkdir(parents=True)
    say(f"building the images of {deployed.name}: {', '.join(deployed.parts)}")
    run(
        [
            sys.executable,
            HERE / "images",
            deployed.folder,
            *deployed.parts,
            "--archive",
            deployed.images,
        ]
    )


def secret_values(
    wanted: Mapping[str, Mapping[str, str]], broker: str, store: Callable[[str], str], key: str
) -> dict[str, dict[str, str]]:
    """Return a value for each key of each Secret; ``store`` returns the URL for a schema's name."""
    found: dict[str, dict[str, str]] = {}
    for secret, keys in wanted.items():
        owner = re.sub("-(store|migrate)$", "", secret)
        found[secret] = {}
        for name in keys:
            if name == "broker":
                value = broker
            elif name == "url":
                value = store(owner)
            elif name == "gateway.key":
                value = key
            else:
                value = secrets.token_urlsafe(32)
            found[secret][name] = value
    return found


def _patches(name: str) -> str:
    """Return patches for a node as small as this, and for the outside of the shop."""
    change: list[dict[str, Any]] = [
        {
            "op": "replace",
            "path": "/spec/template/spec/containers/0/resources/requests/cpu",
            "value": "20m",
        }
    ]
    patches: list[dict[str, Any]] = [
        {"target": {"kind": "Deployment"}, "patch": json.dumps(change)},
    ]
    if name == "counter":
        behaviour = "/spec/advanced/horizontalPodAutoscalerConfig/behavior"
        window = f"{behaviour}/scaleDown/stabilizationWindowSeconds"
        hasten = [
            {"op": "replace", "path": window, "value": 5},
            {"op": "add", "path": "/spec/pollingInterval", "value": 5},
        ]
        patches.append({"target": {"kind": "ScaledObject"}, "patch": json.dumps(hasten)})
    if name == "shop":
        for service in ("payments", "notifications"):
            added = [
                {
                    "op": "add",
                    "path": "/spec/template/spec/containers/0/env/-",
                    "value": {"name": variable, "value": value},
                }
                for variable, value in OUTSIDE.items()
            ]
            target = {"kind": "Deployment", "name": service}
            patches.append({"target": target, "patch": json.dumps(added)})
    return f"patches: {json.dumps(patches)}\n"


def _oyez(folder: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "oyez", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        raise Failed(f"oyez {' '.join(arguments)}: {ran.stderr.strip()[-1500:]}")
    return ran.stdout


def documents(text: str) -> list[dict[str, Any]]:
    """Return the objects in what kubectl prints as JSON: one after the other, or in lists."""
    decoder = json.JSONDecoder()
    found: list[dict[str, Any]] = []
    rest = text.strip()
    while rest:
        each, end = decoder.raw_decode(rest)
        found += each["items"] if each["kind"].endswith("List") else [each]
        rest = rest[end:].lstrip()
    return found


def spoilt(objects: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return objects with one mistake each, and what it is: of them, none may be admitted."""
    found = []
    deployment = next(each for each in objects if each["kind"] == "Deployment")
    for what, spoil in (
        ("a misspelt field", _misspell),
        ("a container that keeps its rights", _keep_rights),
        ("a probe of no port", _probe_nothing),
    ):
        wrong = copy.deepcopy(deployment)
        spoil(wrong["spec"])
        found.append((what, wrong))
    return found


def _misspell(spec: dict[str, Any]) -> None:
    update = spec["strategy"]["rollingUpdate"]
    update["maxUnavailabel"] = update.pop("maxUnavailable")


def _keep_rights(spec: dict[str, Any]) -> None:
    del spec["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]


def _probe_nothing(spec: dict[str, Any]) -> None:
    probe = {"httpGet": {"path": "/readyz"}}
    spec["template"]["spec"]["containers"][0]["readinessProbe"] = probe


def kinds(documents: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many objects there are of each kind."""
    found: dict[str, int] = {}
    for each in documents:
        found[each["kind"]] = found.get(each["kind"], 0) + 1
    return dict(sorted(found.items()))
