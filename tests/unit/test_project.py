"""A project: what its settings name, and what of it does not exist yet."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.project import NotCreated, Project


@pytest.mark.parametrize(
    ("brokers", "names"),
    [
        (("kafka://k", None, None), ["kafka"]),
        (("kafka://k", "nats://n", None), ["kafka", "nats"]),
        (("kafka://k", "nats://n", "nats://n"), ["kafka", "nats"]),
        (("kafka://k", "nats://n", "nats://m"), ["kafka", "nats:one", "nats:two"]),
        (("kafka://k", None, "kafka://l"), ["kafka", "kafka:two"]),
    ],
)
def test_each_broker_has_one_short_name(
    tmp_path: Path, brokers: tuple[str, str | None, str | None], names: list[str]
) -> None:
    text = f'[system]\nname = "t"\nbroker = "{brokers[0]}"\n'
    for service, url in (("one", brokers[1]), ("two", brokers[2])):
        text += f'[services.{service}]\napp = "x:y"\n'
        text += "" if url is None else f'broker = "{url}"\n'
    (tmp_path / "oyez.toml").write_text(text)
    assert [each.name for each in Project(load(tmp_path)).brokers.values()] == names


def test_a_broker_that_only_a_bridge_names_is_called_after_its_end(tmp_path: Path) -> None:
    text = '[system]\nname = "t"\nbroker = "nats://n"\n[bridges.out]\nsource = "nats://n"\n'
    (tmp_path / "oyez.toml").write_text(f'{text}target = "nats://m"\nstreams = ["t.*"]\n')
    known = Project(load(tmp_path)).brokers.values()
    assert [(each.name, each.url, each.setting) for each in known] == [
        ("nats", "nats://n", "system.broker"),
        ("nats:out.target", "nats://m", "bridges.out.target"),
    ]


def project(tmp_path: Path, text: str = "") -> Project:
    (tmp_path / "oyez.toml").write_text(f'[system]\nname = "t"\n{text}')
    return Project(load(tmp_path, {}))


def test_a_broker_shows_no_password(tmp_path: Path) -> None:
    known = project(tmp_path, 'broker = "nats://u:secret@n"\n').brokers
    assert "secret" not in repr(known)
    assert "nats://u:***@n" in repr(known)


async def test_what_never_ran_is_not_made_by_looking(tmp_path: Path) -> None:
    found = project(tmp_path, '[services.one]\napp = "x:y"\n')
    with pytest.raises(NotCreated, match="`oyez dev` makes it"):
        async with found.opened_broker():
            pass
    with pytest.raises(NotCreated, match="`oyez run one` makes it"):
        async with found.opened_store("one"):
            pass
    assert not (tmp_path / ".oyez").exists()


async def test_a_broker_of_one_process_is_refused_by_its_setting(tmp_path: Path) -> None:
    found = project(tmp_path, '[services.one]\napp = "x:y"\nbroker = "memory:"\n')
    with pytest.raises(ConfigurationError, match=r"services\.one\.broker: expected a broker that"):
        async with found.opened_broker("one"):
            pass


def test_services_are_imported_as_far_as_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])
    code = "print('hello')\nfrom oyez import Service\nservice = Service('good')\n"
    (tmp_path / "project_good.py").write_text(code)
    (tmp_path / "project_bad.py").write_text("raise RuntimeError('no\\nlonger')")
    text = '[services.good]\napp = "project_good:service"\n'
    text += '[services.bad]\napp = "project_bad:service"\n'
    text += '[services.other]\napp = "project_good:service"\n'
    services, failed = project(tmp_path, text).services()
    del sys.modules["project_good"]
    assert list(services) == ["good"]
    assert failed["bad"] == "RuntimeError: no"
    assert 'expected Service("other")' in failed["other"]
    assert capsys.readouterr().out == ""
