"""When a killed server counts as gone: not before its last thread has let go of its files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from servers import ROOT

FIRST_THREAD_ENDS = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / "scripts" / "services.d" / "process.py"
    spec = importlib.util.spec_from_file_location("services_process", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", FIRST_THREAD_ENDS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def test_a_process_lives_as_long_as_any_thread_of_it(
    process: ModuleType, child: subprocess.Popen[str]
) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    found = process.Process.of(child.pid)
    deadline = time.monotonic() + 10
    while (process.PROC / str(child.pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
    assert found.alive
    assert not found.wait(0.1)
    child.stdin.close()  # type: ignore[union-attr]
    assert found.wait(10)
