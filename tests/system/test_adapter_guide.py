"""The adapters of docs/guide/adapters.md: certified by the suites, and found by their schemes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "adapters.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder that holds the files of the page, and what pip would write of them."""
    folder = tmp_path / "site"
    metadata = folder / "shown-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shown\nVersion: 1.0\n")
    for language, text in _BLOCK.findall(PAGE.read_text()):
        if language == "python" and (file := _FILE.match(text)):
            (folder / file[1]).write_text(text)
        if language == "ini":
            lines = []
            for group, names in tomllib.loads(text)["project"]["entry-points"].items():
                lines += [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
            (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder


def run(package: Path, *arguments: str, cwd: Path | None = None) -> str:
    path = os.pathsep.join((str(package), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    environment |= {"OYEZ_BROKER": "lines:.oyez/lines", "OYEZ_STORE": "private:.oyez/{service}.db"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd or package,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_they_are_certified(package: Path) -> None:
    plugins = ("-p", "oyez.testing.plugin", "-p", "no:cacheprovider", "--import-mode=importlib")
    told = run(package, "pytest", "-q", "-rs", *plugins, "test_adapters.py")
    assert re.search(r"\d\d passed in", told), told
    assert "skipped" not in told


def test_commands_use_the_broker(package: Path, tmp_path: Path) -> None:
    run(package, "oyez", "new", "greetings", cwd=tmp_path)
    project = tmp_path / "greetings"
    body = '{"greeting_id": "1", "person": "Ada", "text": "Hi"}'
    run(package, "oyez", "publish", "greetings.greeting.sent", body, cwd=project)
    assert "Ada" in run(package, "oyez", "flow", "Ada", cwd=project)
    assert (project / ".oyez" / "lines" / "greetings.greeter").is_dir()
