"""The pytest plugin: real runs of pytest over projects whose modules have the same names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from oyez import adapters
from oyez.testing.plugin import Projects

TOML = """
[system]
name = "{name}"
broker = "memory:"

[services.{name}]
app = "service:service"
"""
SERVICE = """
from oyez import Service, Transaction

from events import Made
from shared.words import WORD

service = Service("{name}", migrations="migrations", publishes=(Made,))


@service.on(Made)
def note(event: Made, tx: Transaction) -> None:
    import late

    tx.execute("insert into note values (:word, :late)", word=WORD, late=late.NAME)
"""
EVENTS = """
from oyez import Event


class Made(Event, type="{name}.made", key="number"):
    number: str
"""
TEST = """
import sys

import pytest

from events import Made
from oyez.testing import Running
from service import service
from shared.words import WORD

pytestmark = pytest.mark.anyio


async def test_it_sees_its_own(running: Running, word: str) -> None:
    assert service.name == "{name}"
    assert WORD == word == "{name}"
    async with running(service) as system:
        await system.publish(Made(number="1"))
        await system.settled()
        assert await system.fetch("{name}", "select * from note") == [
            {{"word": "{name}", "late": "{name}"}}
        ]
        assert [each.source for each in system.history()] == ["/{name}/outside"]


def test_nothing_of_another_is_in_reach() -> None:
    with pytest.raises(ModuleNotFoundError):
        import only_in_{other}
    assert "only_in_{other}" not in sys.modules


def test_its_modules_stay_the_same() -> None:
    import events

    assert events.Made is Made
"""
CONFTEST = """
import pytest

from shared.words import WORD


@pytest.fixture
def word() -> str:
    return WORD


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
"""
OUTSIDE = """
import pytest

from oyez.testing import Running


def test_it_sees_no_project() -> None:
    for name in ("events", "shared", "only_in_first", "only_in_second"):
        with pytest.raises(ModuleNotFoundError):
            __import__(name)


def test_the_fixture_asks_for_a_project(running: Running) -> None: ...
"""


def write(folder: Path, files: dict[str, str], **words: str) -> None:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(**words) if words else text)


@pytest.fixture
def projects(tmp_path: Path) -> Path:
    for name, other in (("first", "second"), ("second", "first")):
        files = {
            "oyez.toml": TOML,
            "service.py": SERVICE,
            "events.py": EVENTS,
            "late.py": 'NAME = "{name}"\n',
            "shared/__init__.py": "",
            "shared/words.py": 'WORD = "{name}"\n',
            f"only_in_{name}.py": "",
            "migrations/001_note.sql": "create table note (word text not null, late text);\n",
            f"tests/test_{name}.py": TEST,
            f"tests/more/test_more_of_{name}.py": TEST,
        }
        write(tmp_path / name, files, name=name, other=other)
        write(tmp_path / name, {"tests/conftest.py": CONFTEST})
    write(tmp_path, {"outside/test_outside.py": OUTSIDE, "pytest.ini": "[pytest]\n"})
    return tmp_path


def run(
    folder: Path,
    *arguments: str,
    plugins: Sequence[str] = ("-p", "oyez.testing.plugin"),
    path: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder, with another one to find packages in."""
    others = ("-p", "no:cacheprovider", "-p", "no:asyncio")
    paths = [str(path)] if path is not None else []
    paths += [each for each in (os.environ.get("PYTHONPATH"),) if each]
    return subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-q", "-rA", *plugins, *others, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("mode", ["importlib", "prepend"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("first", "second", "outside"),
        ("outside", "second/tests", "first/tests"),
        ("second/tests/test_second.py", "first", "outside", "second/tests/more"),
    ],
)
def test_projects_of_one_run_do_not_meet(
    projects: Path, mode: str, arguments: tuple[str, ...]
) -> None:
    done = run(projects, f"--import-mode={mode}", *arguments)
    assert "13 passed, 1 error" in done.stdout, done.stdout
    assert "expects an oyez.toml in this folder or one above it" in done.stdout


def test_a_project_runs_from_any_folder(projects: Path) -> None:
    for folder, argument in (("first", "."), ("first/tests/more", ".."), ("second", "../first")):
        done = run(projects / folder, argument)
        assert "6 passed" in done.stdout, done.stdout


def test_tests_that_are_packages_of_one_name_do_not_meet(projects: Path) -> None:
    for name in ("first", "second"):
        tests = projects / name / "tests"
        (tests / "__init__.py").touch()
        (tests / f"test_{name}.py").rename(tests / "test_same.py")
    for mode in ("importlib", "prepend"):
        done = run(projects, f"--import-mode={mode}", "first/tests", "second/tests")
        assert "12 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("order", [("tests", "first"), ("first", "tests")])
def test_tests_above_a_project_keep_their_modules(projects: Path, order: tuple[str, str]) -> None:
    text = "import sys\n\n\ndef test():\n    assert sys.modules[__name__].__file__ == __file__\n"
    write(projects, {"tests/unit/test_above.py": text})
    done = run(projects, "--import-mode=importlib", *order)
    assert "7 passed" in done.stdout, done.stdout


def test_what_a_plugin_has_loaded_is_not_loaded_again(projects: Path) -> None:
    (projects / "first" / "shared" / "plugged.py").write_text(
        "import pytest, events\n\n\n@pytest.fixture\ndef made():\n    return events.Made\n"
    )
    (projects / "first" / "tests" / "test_first.py").write_text(
        "from events import Made\n\n\ndef test(made):\n    assert made is Made\n"
    )
    done = run(projects / "first", "-p", "shared.plugged", "tests/test_first.py")
    assert "1 passed" in done.stdout, done.stdout


def test_a_suites_failure_is_explained(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import oyez.testing.broker_suite as suite\n\n\ndef test():\n"
        "    assert type(suite.__spec__.loader).__name__ == 'AssertionRewritingHook'\n"
    )
    done = run(tmp_path)
    assert "1 passed" in done.stdout, done.stdout


def test_pytest_finds_it_by_itself_and_not_twice(projects: Path) -> None:
    ((name, value),) = adapters.own("pytest11").items()
    metadata = projects / "site" / "found-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: found\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[pytest11]\n{name} = {value}\n")
    for plugin in ((), ("-p", value)):
        done = run(projects, "first", plugins=plugin, path=projects / "site")
        assert "6 passed" in done.stdout, done.stdout + done.stderr


def test_a_folder_belongs_to_the_nearest_project(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    write(inner, {"oyez.toml": "", "tests/test_a.py": ""})
    write(tmp_path / "outer", {"oyez.toml": "", "tests/test_b.py": ""})
    projects = Projects()
    assert projects.root_of(inner / "tests" / "test_a.py") == inner
    assert projects.root_of(inner) == inner
    assert projects.root_of(inner.parent / "tests" / "test_b.py") == inner.parent
    assert projects.root_of(tmp_path / "test_c.py") is None
