"""The gateway as a wheel for a platform has it: compiled, and attacked as the sources are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("http1", "gateway", "gateway_heads", "gateway_unawaited", "gateway_security", "fuzzed")
"""What of the unit tests is run against it: what reads bytes of strangers, and what they attack."""
HEADERS = Path(sysconfig.get_paths()["include"], "Python.h")


@pytest.mark.skipif(
    shutil.which("cc") is None or not HEADERS.exists(),
    reason="no C compiler with the headers of this Python: scripts/system-packages gets one",
)
@pytest.mark.timeout(600)
def test_compiled_it_passes_its_own_tests(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}"}
    run(
        *("setup.py", "--quiet", "build_ext", "--inplace"),
        where=tmp_path,
        environment={**environment, "OYEZ_COMPILED": "1", "OYEZ_COMPILED_LEVEL": "0"},
    )
    where = "from oyez.gateway import edge, http1; print(edge.__file__, http1.__file__)"
    assert run("-c", where, where=ROOT, environment=environment).count(".so") == 2
    asked = [f"tests/unit/test_{name}.py" for name in TESTS]
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *asked)
    said = run(*tests, where=ROOT, environment=environment)
    assert re.search(r"\d{3} passed", said), said


def run(*arguments: str, where: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-5000:]}{done.stderr[-5000:]}"
    return done.stdout
