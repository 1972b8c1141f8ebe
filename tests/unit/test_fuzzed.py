"""Any bytes at what reads bytes of strangers: a typed error, or a value that is right.

For a moment each; `OYEZ_TEST_FUZZ_SECONDS` says for how long, and `scripts/fuzz` is guided by what
the code does.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzzed import TARGETS, run

SECONDS = float(os.environ.get("OYEZ_TEST_FUZZ_SECONDS", "0"))


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_refused_or_right(name: str, tmp_path: Path) -> None:
    assert run(TARGETS[name], tmp_path, SECONDS) >= 100
