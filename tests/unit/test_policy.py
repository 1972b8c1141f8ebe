"""docs/policy.md says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import oyez
import oyez.testing

ROOT = Path(__file__).parents[2]
POLICY = (ROOT / "docs" / "policy.md").read_text()


def told(beginning: str) -> list[str]:
    """The names of the paragraph that begins so."""
    (paragraph,) = [part for part in POLICY.split("\n\n") if part.startswith(beginning)]
    return re.findall(r"`(\w+)`", paragraph.removeprefix(beginning))


@pytest.mark.parametrize("module", [oyez, oyez.testing])
def test_the_names_are_those_of_the_code(module: object) -> None:
    name, names = module.__name__, module.__all__  # type: ignore[attr-defined]
    assert told(f"`from {name} import …`") == names


def test_the_paths_are_those_of_the_admin_port() -> None:
    page = (ROOT / "docs" / "guide" / "operations.md").read_text()
    section = page.partition("## The admin port\n")[2].partition("\n## ")[0]
    listed = {
        path
        for row in re.findall(r"^\| (`/[^|]+) \|", section, re.MULTILINE)
        for path in re.findall(r"`(/[\w/]+)`", row)
    }
    source = (ROOT / "src" / "oyez" / "runtime" / "admin.py").read_text()
    routed = set(re.findall(r'Route\("(/[\w/]+)"', source))
    routed |= {re.findall(r'^SCALE = "(.+)"', source, re.MULTILINE)[0]}
    assert listed == routed


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["nothing"], 2), (["lag"], 2), (["new", "a b"], 2)]
)
def test_exit_codes(tmp_path: Path, arguments: list[str], code: int) -> None:
    assert f"| {code} | " in POLICY
    done = run(tmp_path, f"from oyez.cli import main; main({arguments})")
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [("OyezError('no')", 1), ("ConfigurationError('no')", 2), ("KeyboardInterrupt", 130)],
)
def test_exit_codes_of_failures(tmp_path: Path, error: str, code: int) -> None:
    assert f"| {code} | " in POLICY
    program = f"""
import oyez.cli
from oyez.errors import ConfigurationError, OyezError
def fail(*_, **__):
    raise {error}
oyez.cli.root.main = fail
oyez.cli.main([])
"""
    assert run(tmp_path, program).returncode == code


def test_windows_is_refused_in_one_sentence(tmp_path: Path) -> None:
    program = "import sys, oyez.cli; sys.platform = 'win32'; oyez.cli.main(['doctor'])"
    done = run(tmp_path, program)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Windows" in line
    assert "WSL" in line


def test_the_supported_pythons_are_the_classified_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    mark = "Programming Language :: Python :: 3."
    classified = [each.rpartition(" ")[2] for each in project["classifiers"] if mark in each]
    (row,) = re.findall(r"^\| CPython (.+) \| supported;", POLICY, re.MULTILINE)
    assert row.split(", ") == classified
    assert project["requires-python"] == f">={classified[0]}"


def test_the_extra_for_all_has_all() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (everything,) = extras.pop("all")
    assert everything == f"oyez[{','.join(sorted(extras))}]"
