"""``oyez new``: what it makes passes its own tests, type-checks, and runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shop import free_ports


def oyez(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "oyez", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)  # between two looks at a condition with a deadline
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    done = oyez(folder, "new", "my-greetings")
    assert done.returncode == 0, done.stderr
    for word in ("cd my-greetings", "pytest", "oyez dev", "README.md"):
        assert word in done.stdout
    return folder / "my-greetings"


def test_it_is_complete(made: Path) -> None:
    files = sorted(str(file.relative_to(made)) for file in made.rglob("*") if file.is_file())
    for expected in (".gitignore", "README.md", "oyez.toml", "pyproject.toml"):
        assert expected in files
    assert not any(file.endswith(".template") for file in files)
    assert not any("{{" in file.read_text() for file in made.rglob("*") if file.is_file())
    assert oyez(made, "doctor").returncode == 0


def test_its_tests_pass(made: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "oyez.testing.plugin",
            "-p",
            "no:cacheprovider",
        ],
        cwd=made,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_its_services_type_check(made: Path) -> None:
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "greeter", "counter"],
        cwd=made,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture
def served(made: Path) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    greeter, counter = free_ports(2)
    settings = {
        "OYEZ_SERVICES_GREETER_HTTP": f"127.0.0.1:{greeter}",
        "OYEZ_SERVICES_COUNTER_HTTP": f"127.0.0.1:{counter}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "oyez", "run", name],
            cwd=made,
            env={**os.environ, **settings},
            stderr=(made / f"{name}.log").open("ab"),
        )
        for name in ("greeter", "counter")
    ]
    try:
        urls = {"greeter": f"http://127.0.0.1:{greeter}", "counter": f"http://127.0.0.1:{counter}"}
        yield settings, urls
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(30) for process in processes]
    assert codes == [0, 0]


def test_it_runs_and_counts(made: Path, served: tuple[dict[str, str], dict[str, str]]) -> None:
    settings, urls = served

    def ask(service: str, path: str, body: dict[str, str] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(f"{urls[service]}{path}", data, timeout=10) as answer:
                return json.load(answer)
        except OSError:  # not listening yet
            return None

    until(lambda: ask("greeter", "/greetings", {"person": "Ada"}))
    body = '{"greeting_id": "1", "person": "Ada", "text": "Hi"}'
    done = oyez(made, "publish", "my-greetings.greeting.sent", body, **settings)
    assert done.returncode == 0, done.stderr
    until(lambda: ask("counter", "/counts") == {"counts": [{"person": "Ada", "times": 2}]})
    flow = oyez(made, "flow", "Ada", **settings)
    assert "counter.count  handled" in flow.stdout


@pytest.mark.parametrize("name", ["Bad", "", "1st", "a/b", "../up", "a" * 42, "a-", "ä", "-x", "."])
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    done = oyez(tmp_path, "new", "--", name)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file", "dangling"):
        done = oyez(tmp_path, "new", name)
        assert done.returncode == 2
        assert "choose another" in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept"]
    assert oyez(tmp_path, "new", "empty").returncode == 0
