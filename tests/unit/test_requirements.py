"""What is pinned for the package is what it needs, and the package does without all the rest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
DECLARED = [
    Requirement(each)
    for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
]
ELSEWHERE = ("aiosmtpd", "aiosmtplib", "atpublic", "attr", "authlib", "joserfc", "setuptools")
"""Modules of the shop, and of what makes the package."""


def asked(file: str) -> list[Requirement]:
    lines = (REQUIREMENTS / f"{file}.in").read_text().splitlines()
    return [Requirement(line) for line in lines if line[:1].isalnum()]


def pinned(file: str) -> dict[str, str]:
    text = (REQUIREMENTS / f"{file}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))


def closure(wanted: list[Requirement]) -> set[str]:
    """The names of what is installed for these, with all that those need here."""
    found: set[tuple[str, frozenset[str]]] = set()
    left = [(each, {""}) for each in wanted]
    while left:
        each, extras = left.pop()
        if each.marker is not None and not any(each.marker.evaluate({"extra": e}) for e in extras):
            continue
        node = (canonicalize_name(each.name), frozenset(each.extras))
        if node not in found:
            found.add(node)
            needs = requires(each.name) or []
            left += [(Requirement(need), {"", *each.extras}) for need in needs]
    return {name for name, _ in found}


def test_the_package_asks_for_what_it_declares() -> None:
    def told(each: Requirement) -> tuple[str, set[str], str]:
        return each.name, each.extras, str(each.marker)

    assert sorted(map(told, asked("runtime"))) == sorted(map(told, DECLARED))


@pytest.mark.parametrize("file", ["runtime", "shop", "build"])
def test_what_is_pinned_is_what_is_asked_for_and_what_that_needs(file: str) -> None:
    assert pinned(file).keys() == closure(asked(file))


def test_no_two_files_pin_different_versions() -> None:
    every = {file.stem: pinned(file.stem) for file in REQUIREMENTS.glob("*.txt")}
    assert {"build", "runtime", "shop", "dev", "bench", "release"} == every.keys()
    for name, version in ((n, v) for pins in every.values() for n, v in pins.items()):
        assert {pins[name] for pins in every.values() if name in pins} == {version}


def test_uvloop_is_asked_for_where_it_exists() -> None:
    (marker,) = [each.marker for each in DECLARED if each.name == "uvloop"]
    assert marker is not None
    linux = {"sys_platform": "linux", "platform_python_implementation": "CPython"}
    assert marker.evaluate(linux)
    assert not marker.evaluate({**linux, "sys_platform": "win32"})
    assert not marker.evaluate({**linux, "platform_python_implementation": "PyPy"})
    (line,) = [
        line.removesuffix(" \\")
        for line in (REQUIREMENTS / "runtime.txt").read_text().splitlines()
        if line.startswith("uvloop==")
    ]
    assert Requirement(line).marker == marker


def test_a_project_is_made_checked_and_migrated_without_the_rest_and_without_uvloop(
    tmp_path: Path,
) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(',')));"
        "from oyez.cli import main; main(sys.argv[2:])"
    )

    def oyez(folder: Path, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code, ",".join((*ELSEWHERE, "uvloop")), *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    oyez(tmp_path, "new", "till")
    oyez(tmp_path / "till", "migrate")
    oyez(tmp_path / "till", "doctor")
