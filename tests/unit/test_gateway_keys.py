"""API keys: their file, read again when it changes, the end of a key, and the command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from io import StringIO
from pathlib import Path

import pytest
from test_gateway import KEY, Client, Clock, Upstream, listening, refused, serving, settings

from oyez.ambient import SystemAmbient
from oyez.cli import main
from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.gateway import gateway
from oyez.gateway import keys as api_keys
from oyez.gateway.keyfile import add_key, read_keys
from oyez.logger import configure

DEADLINE = 10.0
CLERKS = """
[[gateway.routes]]
path = "/clerks"
service = "orders"
access = "key"
scopes = ["orders:cancel"]
roles = ["clerk"]
"""


@pytest.fixture
async def upstream() -> Upstream:
    return Upstream()


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def write(folder: Path, text: str) -> None:
    """As an editor does it: aside, and then in place."""
    aside = folder / "keys.toml~"
    aside.write_text(text)
    aside.chmod(0o600)
    aside.replace(folder / "keys.toml")


async def status(client: Client, key: str, path: str = "/orders") -> int:
    return (await client.get(path, headers={"x-api-key": key})).status_code


async def becomes(client: Client, key: str, expected: int, path: str = "/orders") -> None:
    async with asyncio.timeout(DEADLINE):
        while await status(client, key, path) != expected:
            await asyncio.sleep(0.02)


async def test_a_key_has_an_end_and_scopes_and_roles(tmp_path: Path, upstream: Upstream) -> None:
    clock = Clock()
    soon = datetime.fromtimestamp(int(time.time()) + 100, UTC)
    async with listening(upstream) as port:
        config = settings(tmp_path, port, CLERKS)
        write(
            tmp_path,
            f"""
            [keys.clerk]
            sha256 = "{digest("clerk")}"
            scopes = ["orders:cancel", "orders:read"]
            roles = ["clerk"]
            [keys.reader]
            sha256 = "{digest("reader").upper()}"
            scopes = ["orders:read"]
            roles = ["clerk"]
            [keys.guest]
            sha256 = "{digest("guest")}"
            scopes = ["orders:cancel"]
            [keys.brief]
            sha256 = "{digest("brief")}"
            expires = {soon:%Y-%m-%dT%H:%M:%S}Z
            [keys.other]
            sha256 = "{digest("other")}"
            expires = "{soon.isoformat()}"
            """,
        )
        async with serving(config, clock) as client:
            assert await status(client, "clerk", "/clerks") == 200
            assert await status(client, "reader", "/clerks") == 403
            assert await status(client, "guest", "/clerks") == 403
            assert await status(client, "brief") == await status(client, "other") == 200
            clock.ahead = 101
            for key in ("brief", "other"):
                answer = await client.get("/orders", headers={"x-api-key": key})
                refused(answer, 401, "key_expired")
            assert await status(client, "guest") == 200


async def test_the_file_is_read_again(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is broken in it leaves the keys as they were, with a line in the log."""
    monkeypatch.setattr(api_keys, "_LOOK_SECONDS", 0.05)
    keys = tmp_path / "keys.toml"
    good = f'[keys.new]\nsha256 = "{digest("new")}"\n'
    with contextlib.redirect_stderr(StringIO()) as errors:
        configure("json")
        async with listening(upstream) as port, serving(settings(tmp_path, port)) as client:
            assert await status(client, KEY) == 200
            assert await status(client, "new") == 401
            write(tmp_path, good)
            await becomes(client, "new", 200)
            assert await status(client, KEY) == 401
            broken: list[Callable[[], object]] = [
                lambda: write(tmp_path, '[keys.new]\nsha256 = "canary-digest"'),
                lambda: write(tmp_path, "[keys"),
                lambda: keys.chmod(0o644),
                keys.unlink,
            ]
            for number, breaks in enumerate(broken):
                breaks()
                async with asyncio.timeout(DEADLINE):
                    while errors.getvalue().count("API keys not read again") == number:
                        await asyncio.sleep(0.02)
                assert await status(client, "new") == 200
                next_key = f'[keys.next-{number}]\nsha256 = "{digest(f"next {number}")}"\n'
                write(tmp_path, good + next_key)
                await becomes(client, f"next {number}", 200)
        configure("console")
    lines = [json.loads(line) for line in errors.getvalue().splitlines()]
    faults = [line for line in lines if line["event"] == "API keys not read again"]
    said_of_each = ("keys.toml:2: keys.new.sha256", "TOML", "0644", "none at")
    for line, said in zip(faults, said_of_each, strict=True):
        assert line["level"] == "error"
        assert line["file"] == str(keys)
        assert said in line["error"]
        assert line["remedy"]
    assert "canary" not in repr(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("expires = 2030-01-31T12:00:00", "keys.ci.expires: expected a time with its offset"),
        ("expires = 2030-01-31", "keys.ci.expires: expected a time with its offset"),
        ('expires = "tomorrow"', "keys.ci.expires: expected a time with its offset"),
        ("expires = 1893456000", "keys.ci.expires: expected a time with its offset"),
        ('scopes = "orders:read"', "keys.ci.scopes: expected a list of scopes"),
        ('scopes = ["a b"]', "keys.ci.scopes: expected a list of scopes"),
        ("scopes = ['a\"b']", "keys.ci.scopes: expected a list of scopes"),
        ("roles = [1]", "keys.ci.roles: expected a list of roles"),
        ('scope = ["a"]', "keys.ci.scope: expected one of sha256, expires, scopes, roles, found"),
    ],
)
def test_a_mistake_in_the_file_names_its_line(tmp_path: Path, text: str, expected: str) -> None:
    config = settings(tmp_path, 1)
    write(tmp_path, f'[keys.ci]\nsha256 = "{digest("x")}"\n{text}\n')
    with pytest.raises(ConfigurationError) as caught:
        gateway(config, SystemAmbient(), secret=b"x" * 32)
    assert f"keys.toml:3: {expected}" in str(caught.value)


# The command


def oyez(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """What ``oyez gateway key`` prints; its error if it is to fail."""
    with pytest.raises(SystemExit) as end:
        main(["gateway", "key", *arguments])
    out, err = capsys.readouterr()
    assert end.value.code == code, err
    return err if code else out


async def test_a_key_that_the_command_makes_passes(
    tmp_path: Path,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with listening(upstream) as port:
        config = settings(tmp_path, port, CLERKS)
        monkeypatch.setenv("OYEZ_PROJECT", str(tmp_path / "oyez.toml"))
        async with serving(config) as client:
            given = ("--scope", "orders:cancel", "--scope", "a", "--role", "clerk", "--role", "é")
            key = oyez(capsys, "partner", *given, "--expires", "90d").strip()
            assert key.startswith("oyez_")
            assert len(key) > 40
            await becomes(client, key, 200, "/clerks")
            assert await status(client, KEY) == 200
    text = (tmp_path / "keys.toml").read_text()
    assert key not in text
    assert (tmp_path / "keys.toml").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".keys*"))
    (made,) = (each for each in read_keys(config, tmp_path / "keys.toml") if each.name == "partner")
    assert (made.scopes, made.roles) == (("orders:cancel", "a"), ("clerk", "é"))
    assert made.expires is not None
    assert abs(made.expires - time.time() - 90 * 86_400) < 60


def test_the_command_makes_the_file_and_spoils_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(tmp_path, 1)
    monkeypatch.setenv("OYEZ_PROJECT", str(tmp_path / "oyez.toml"))
    keys = tmp_path / "keys.toml"
    keys.unlink()
    first = oyez(capsys, "one").strip()
    assert keys.stat().st_mode & 0o777 == 0o600
    assert tomllib.loads(keys.read_text()) == {"keys": {"one": {"sha256": digest(first)}}}
    keys.write_text(f"# kept\n{keys.read_text().rstrip()} # kept too")
    keys.chmod(0o640)
    oyez(capsys, "two", "--expires", "12h")
    before = keys.read_text()
    assert before.startswith("# kept\n[keys.one]\n")
    assert "# kept too\n\n[keys.two]\n" in before
    assert keys.stat().st_mode & 0o777 == 0o640
    for arguments, said in (
        (["two"], "keys.two: expected a new name, found a key of it"),
        (["Two"], "expected [a-z][a-z0-9-]{0,40}"),
        (["a.b"], "expected [a-z][a-z0-9-]{0,40}"),
        (["x", "--scope", "a b"], 'scopes: expected a list of scopes such as "orders:write"'),
        (["x", "--role", 'a"\nb'], "roles: expected a list of roles"),
        (["x", "--expires", "90"], "expected a number and a unit"),
        (["x", "--expires", "0d"], "expected a number and a unit"),
    ):
        assert said in oyez(capsys, *arguments, code=2), arguments
        assert keys.read_text() == before
    keys.write_text(f'keys = {{one = {{sha256 = "{digest("x")}"}}}}\n')
    assert "[keys.NAME]" in oyez(capsys, "three", code=2)
    keys.write_text("[keys")
    assert "expected a TOML file" in oyez(capsys, "three", code=2)
    assert keys.read_text() == "[keys"
    text = (tmp_path / "oyez.toml").read_text()
    (tmp_path / "oyez.toml").write_text(text.replace('keys = "keys.toml"', ""))
    assert 'gateway.keys: expected a file for API keys, such as keys = "keys.toml"' in oyez(
        capsys, "three", code=2
    )


def test_keys_that_are_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    settings(tmp_path, 1)
    config = load(tmp_path, {})
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: add_key(config, f"key-{n}"), range(24)))
    found = {each.sha256.hex() for each in read_keys(config, tmp_path / "keys.toml")}
    assert {digest(key) for key in made} <= found
