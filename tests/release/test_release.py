"""`scripts/release` refuses what is not ready, and tags what is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = (
    "CHANGELOG.md",
    "pyproject.toml",
    "scripts/release",
    "scripts/options",
    "scripts/comparison",
    "docs",
    "benchmarks/results.md",
    "examples/shop",
)


class Checkout:
    """A repository of its own, with what a release looks at."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in KEPT:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                ignore = shutil.ignore_patterns("*.png", ".oyez", "__pycache__")
                shutil.copytree(ROOT / name, root / name, ignore=ignore)
            else:
                shutil.copy(ROOT / name, root / name)
        (root / "src/oyez/brokers").mkdir(parents=True)
        (root / "src/oyez/brokers/one.py").touch()
        (root / ".gitignore").write_text(".oyez/\n__pycache__/\n")
        self.git("init", "-q", "-b", "main")
        self.edit("CHANGELOG.md", r"## \[Unreleased\]", "## [0.1.0] - 2027-01-31")
        self.commit()

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        return subprocess.run(
            ["git", *identity, *arguments],
            cwd=self.root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "Change something")

    def edit(self, name: str, old: str, new: str) -> None:
        file = self.root / name
        text, count = re.subn(old, new, file.read_text(), count=1)
        assert count == 1
        file.write_text(text)

    def release(self, *arguments: str) -> tuple[int, str]:
        environment = {
            **os.environ,
            "BIN": str(Path(sys.executable).parent),
            "CAPABILITIES": "checked",
            "GIT_COMMITTER_NAME": "Test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        }
        done = subprocess.run(
            ["sh", "scripts/release", *arguments],
            cwd=self.root, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def tags(self) -> str:
        return self.git("tag")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """One that may be released as 0.1.0."""
    return Checkout(tmp_path)


def test_a_dry_run_changes_nothing_and_the_run_tags(checkout: Checkout) -> None:
    code, text = checkout.release("0.1.0", "--dry-run")
    assert code == 0, text
    assert "v0.1.0 may be released" in text
    assert checkout.tags() == ""
    code, text = checkout.release("0.1.0")
    assert code == 0, text
    assert checkout.tags() == "v0.1.0"
    assert "Events as typed records" in checkout.git("tag", "-n99", "v0.1.0")
    assert checkout.release("0.1.0") == (1, "release: v0.1.0 is tagged already\n")


@pytest.mark.parametrize("arguments", [(), ("0.1",), ("v0.1.0",), ("0.1.0", "--now"), ("0.1.0x",)])
def test_wrong_usage(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    assert checkout.release(*arguments)[0] == 2


def test_a_dirty_tree(checkout: Checkout) -> None:
    (checkout.root / "new").touch()
    code, text = checkout.release("0.1.0", "--dry-run")
    assert code == 1
    assert "dirty" in text


def test_another_branch(checkout: Checkout) -> None:
    checkout.git("switch", "-qc", "other")
    assert checkout.release("0.1.0", "--dry-run") == (1, "release: not on main\n")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("pyproject.toml", 'version = "0.1.0"', 'version = "0.1.1"', "pyproject.toml says 0.1.1"),
        ("CHANGELOG.md", r"## \[0.1.0\]", "## [0.0.9]", "has no section"),
        ("CHANGELOG.md", " - 2027-01-31", " - soon", "has no date"),
        ("CHANGELOG.md", r"(?s)(2027-01-31\n).*", r"\1\nNothing.\n", "says nothing"),
        ("docs/guide/options.md", "## Kafka", "## Kafka today", "options.md is stale"),
        ("docs/comparison.md", "met", "nearly met", "comparison.md is stale"),
        (
            "examples/shop/contracts/orders.json",
            '"type"',
            '"kind"',
            "contracts of the shop are stale",
        ),
    ],
)
def test_what_is_not_ready(checkout: Checkout, file: str, old: str, new: str, said: str) -> None:
    checkout.edit(file, old, new)
    checkout.commit()
    code, text = checkout.release("0.1.0", "--dry-run")
    assert code == 1
    assert said in text
    assert checkout.tags() == ""


def test_capabilities_older_than_the_adapters(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout.root / "src/oyez/brokers/one.py").write_text("changed = True\n")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2099-01-01T00:00:00Z")
    checkout.commit()
    done = subprocess.run(
        ["sh", "scripts/release", "0.1.0", "--dry-run"],
        cwd=checkout.root,
        env={**os.environ, "BIN": str(Path(sys.executable).parent), "CAPABILITIES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "make capabilities" in done.stderr
