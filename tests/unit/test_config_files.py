"""Variables that are read from files: ``NAME_FILE`` holds ``NAME``."""

from __future__ import annotations

from pathlib import Path

import pytest

from oyez.config import given, load
from oyez.errors import ConfigurationError
from oyez.project import Project

TOML = """\
[system]
name = "shop"

[services.orders]
app = "orders:service"
store = "postgresql://orders:${PASSWORD}@db/orders"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "oyez.toml").write_text(TOML)
    (tmp_path / "secret").write_text("canary\n")
    return tmp_path


def test_a_setting_and_a_variable_of_the_file_are_read_from_files(root: Path) -> None:
    (root / "broker").write_text("nats://mq:4222\n")
    environ = {"OYEZ_BROKER_FILE": f"{root}/broker", "PASSWORD_FILE": f"{root}/secret"}
    config = load(root, environ)
    assert config.system.broker == "nats://mq:4222"
    assert config.services["orders"].store == "postgresql://orders:canary@db/orders"


def test_the_tokens_are_read_from_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OYEZ_TOKEN", "OYEZ_READ_TOKEN", "OYEZ_SCALE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(f"{name}_FILE", f"{root}/secret")
    project = Project(load(root, {"PASSWORD": "x"}))
    assert [project.token(), project.read_token(), project.scale_token()] == ["canary"] * 3
    assert not (root / ".oyez" / "token").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "nothing at"),
        (b"\n", "nothing at"),
        (b"\xff\xfe", "no text"),
        (b"canary" * 20_000, "more than 65536 bytes"),
    ],
)
def test_what_can_not_be_the_secret_is_refused_and_not_shown(
    root: Path, content: bytes | None, words: str
) -> None:
    file = root / "other"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        given("OYEZ_TOKEN", {"OYEZ_TOKEN_FILE": f"{file}"})
    assert str(refused.value).startswith("environment: OYEZ_TOKEN_FILE: expected a file")
    assert words in str(refused.value)
    assert "canary" not in str(refused.value)


def test_both_are_refused(root: Path) -> None:
    environ = {"OYEZ_BROKER": "memory:", "OYEZ_BROKER_FILE": f"{root}/secret", "PASSWORD": "x"}
    with pytest.raises(ConfigurationError, match="either it or OYEZ_BROKER, found both"):
        load(root, environ)


def test_an_unknown_setting_is_unknown_from_a_file_too(root: Path) -> None:
    environ = {"OYEZ_SERVICES_ORDERS_STORES_FILE": f"{root}/secret", "PASSWORD": "x"}
    with pytest.raises(ConfigurationError, match="OYEZ_SERVICES_ORDERS_STORES: expected a setting"):
        load(root, environ)


def test_files_of_others_are_not_touched(root: Path) -> None:
    load(root, {"SSL_CERT_FILE": "/nowhere", "PASSWORD": "x"})
