"""Files that Oyez writes into a project: told apart from those that somebody has edited."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from oyez.errors import ConfigurationError

_MARK = re.compile(r"\A# Made by `([^`\n]+)`[^\n]*\n# sha256:([0-9a-f]{64})\n")

State = Literal["unchanged", "written", "removed", "kept"]


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one file, or with ``check`` would."""

    path: str
    """Relative to the project's folder."""
    state: State


def signed(text: str, command: str) -> str:
    """Return a file's text below the two lines that say who made it, and from what."""
    return f"{_head(text, command)}{text}"


def _head(text: str, command: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    told = f"# Made by `{command}`: run it again rather than edit this file."
    return f"{told}\n# sha256:{digest}\n"


def write(
    root: Path,
    files: Mapping[str, str],
    command: str,
    *,
    folders: tuple[str, ...] = (),
    once: Mapping[str, str] | None = None,
    force: bool = False,
    check: bool = False,
) -> list[Written]:
    """Write files, by their paths below ``root``, and return what became of each.

    Files below ``folders`` that ``command`` made once and makes no more are removed. Those of
    ``once`` are made where they are missing, and then left to whoever edits them. With ``check``
    nothing is changed. Raises ConfigurationError, and writes nothing, for a file that somebody has
    edited or made, unless ``force``.
    """
    found: list[Written] = []
    wanted = {path: signed(text, command) for path, text in files.items()}
    for path, text in wanted.items():
        present = _read(root / path)
        same = present == text
        if not (same or force or present is None or _ours(present)):
            raise ConfigurationError(
                f"{root / path}: expected a file as `{command}` made it, found one that was made "
                "or edited by hand: move what you changed elsewhere, or give --force"
            )
        found.append(Written(path=path, state="unchanged" if same else "written"))
    left = [path for path in _left(root, folders, command) if path not in wanted]
    found += [Written(path=path, state="removed") for path in left]
    for path in once or {}:
        there = _read(root / path) is not None
        found.append(Written(path=path, state="kept" if there else "written"))
    if not check:
        for each in found:
            text = wanted.get(each.path) or (once or {}).get(each.path, "")
            _apply(root / each.path, each.state, text)
    return found


def _ours(text: str) -> bool:
    """Return whether the text is as a command made it."""
    mark = _MARK.match(text)
    return mark is not None and text.startswith(_head(text[mark.end() :], mark[1]))


def _left(root: Path, folders: tuple[str, ...], command: str) -> list[str]:
    left = []
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            text = _read(path) if path.is_file() else None
            mark = _MARK.match(text) if text is not None else None
            if text is not None and mark is not None and mark[1] == command and _ours(text):
                left.append(path.relative_to(root).as_posix())
    return left


def _read(path: Path) -> str | None:
    """Return a file's text; None if there is none. What is no text is nobody's but the user's."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error


def _apply(path: Path, state: State, text: str) -> None:
    try:
        if state == "removed":
            path.unlink()
        elif state == "written":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
