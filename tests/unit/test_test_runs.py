"""How the tests themselves are run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_of_few_tests_imports_nothing_in_its_summary(tmp_path: Path) -> None:
    (tmp_path / "test_few.py").write_text(
        "import sys\n\n\ndef test():\n"
        "    assert 'hypothesis.internal.observability' in sys.modules\n"
    )
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c")
    config = (str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-p", "tests.conftest")
    run = subprocess.run(
        (*command, *config, str(tmp_path)), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stdout
