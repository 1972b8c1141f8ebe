"""What is to go away warns where it is used, and the policy and the changelog tell of it."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Callable
from linecache import getline
from pathlib import Path
from types import ModuleType
from typing import Annotated

import msgspec
import pytest

from oyez.config.reader import Reader
from oyez.config.rules import one_of
from oyez.deprecation import Leaving

ROOT = Path(__file__).parents[2]
CALL = Leaving("Service.call", since="0.3", instead="Service.on")
MODE = Leaving("system.mode", since="0.4", instead="system.way")


def call() -> None:
    CALL.warn()


def outer() -> None:
    """Is what is deprecated, and warns by a function of its own."""
    inner()


def inner() -> None:
    CALL.warn(depth=2)


@pytest.mark.parametrize("used", [call, outer])
def test_a_name_warns_at_the_place_of_its_use(used: Callable[[], None]) -> None:
    with pytest.warns(DeprecationWarning, match="use Service.on") as told:
        used()
    (warning,) = told
    assert str(warning.message) == "Service.call is deprecated since 0.3: use Service.on"
    assert warning.filename == __file__
    assert getline(__file__, warning.lineno).strip() == "used()"


def test_a_name_of_a_module_warns_where_it_is_imported() -> None:
    module = ModuleType("of_a_test")

    def name(what: str) -> object:
        if what != "old":
            raise AttributeError(what)
        CALL.warn()
        return 1

    module.__getattr__ = name  # type: ignore[method-assign]
    sys.modules["of_a_test"] = module
    try:
        with pytest.warns(DeprecationWarning, match="use Service.on") as told:
            from of_a_test import old  # type: ignore[import-not-found]
    finally:
        del sys.modules["of_a_test"]
    assert old == 1
    assert {warning.filename for warning in told} == {__file__}


class Modes(msgspec.Struct):
    mode: Annotated[str | None, one_of("a", "b")._replace(leaving=MODE)] = None
    way: Annotated[str | None, one_of("a", "b")] = None


class Settings(msgspec.Struct):
    system: Modes


@pytest.mark.parametrize(
    ("text", "environment", "place"),
    [
        ('[system]\nmode = "a"\n', {}, "oyez.toml:2: "),
        ('[system]\nway = "a"\n', {"OYEZ_MODE": "a"}, "environment: OYEZ_MODE: "),
    ],
)
def test_a_setting_is_told_in_one_line_with_its_place(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    environment: dict[str, str],
    place: str,
) -> None:
    (tmp_path / "oyez.toml").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Reader(tmp_path / "oyez.toml", environment).read(Settings).system.mode == "a"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{place}system.mode is deprecated since 0.4: use system.way")


def test_what_replaces_it_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "oyez.toml").write_text('[system]\nway = "a"\n')
    Reader(tmp_path / "oyez.toml", {}).read(Settings)
    assert capsys.readouterr().err == ""


def leaving() -> list[str]:
    """What the code says is to go away."""
    calls = (
        node
        for file in (ROOT / "src").rglob("*.py")
        if "Leaving(" in (text := file.read_text())
        for node in ast.walk(ast.parse(text))
    )
    return [
        node.args[0].value
        for node in calls
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Leaving"
        and isinstance(node.args[0], ast.Constant)
    ]


def test_the_policy_and_the_changelog_name_what_is_to_go_away() -> None:
    names = leaving()
    nothing = "Nothing is deprecated now." in (ROOT / "docs" / "policy.md").read_text()
    assert nothing == (names == [])
    deprecated = (ROOT / "CHANGELOG.md").read_text().split("### Deprecated")[1:]
    assert [each for each in names if not any(f"`{each}`" in part for part in deprecated)] == []
