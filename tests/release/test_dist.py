"""The archives of a commit: the same bytes from every build, and all that belongs in them."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.metadata import distributions, requires
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    """A script of this repository as a module."""
    loader = SourceFileLoader(f"script_{name}", str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git lists what belongs in an archive")
def test_two_builds_are_equal_and_hold_what_belongs_in_them(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "dist", "--into", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal in two builds") == 2
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as packed:
        members = packed.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    for kept in (
        "CHANGELOG.md",
        "docs/index.md",
        "tests/unit/test_event.py",
        "requirements/dev.txt",
        "examples/shop/oyez.toml",
        "LICENSE",
        "scripts/smoke",
        "src/oyez/py.typed",
    ):
        assert kept in names
    assert len({member.mtime for member in members}) == 1
    assert {(member.uid, member.uname) for member in members} == {(0, "")}
    with zipfile.ZipFile(wheel) as packed_wheel:
        assert packed_wheel.testzip() is None
        assert all(name.startswith(("oyez/", "oyez-")) for name in packed_wheel.namelist())


def test_builds_that_differ_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dist = script("dist")

    def build(
        place: Path, epoch: int, surroundings: dict[str, str], *, compiled: bool
    ) -> list[Path]:
        file = place / "a.whl"
        file.write_text(surroundings["TZ"])
        return [file]

    monkeypatch.setattr(dist, "build", build)
    monkeypatch.setattr(dist, "commit_time", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["dist", "--into", str(tmp_path)])
    assert dist.main() == 1
    assert "two builds differ in a.whl" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def closure(extras: set[str]) -> Iterator[str]:
    """What is installed for Oyez with these extras."""
    left, done = [("oyez", frozenset(extras))], set()
    while left:
        node = left.pop()
        if node in done:
            continue
        done.add(node)
        yield node[0]
        for each in map(Requirement, requires(node[0]) or []):
            wanted = [{"extra": extra} for extra in ("", *node[1])]
            if each.marker is None or any(each.marker.evaluate(one) for one in wanted):
                left.append((canonicalize_name(each.name), frozenset(each.extras)))


def test_every_licence_is_allowed() -> None:
    supply = script("supply")
    names = set(closure({"all"})) - {"oyez"}
    assert {"msgspec", "confluent-kafka", "asyncpg", "cffi", "pathspec"} <= names
    found = {}
    for each in distributions():
        metadata = each.metadata
        classifiers = [c for c in metadata.get_all("Classifier") or [] if "License ::" in c]
        said = metadata.get("License-Expression") or supply.spdx(
            metadata.get("License") or "", classifiers
        )
        found[canonicalize_name(metadata["Name"])] = said
    assert {name: found[name] for name in names if not supply.allowed(name, found[name])} == {}


@pytest.mark.parametrize(
    ("licence", "good"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT AND PSF-2.0) OR Apache-2.0", True),
        ("AGPL-3.0-only", False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("", False),
    ],
)
def test_a_licence_is_judged(licence: str, good: bool) -> None:
    assert script("supply").allowed("some", licence) == good
