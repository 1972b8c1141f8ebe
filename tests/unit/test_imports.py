"""What a process loads: nothing that it may never use."""

from __future__ import annotations

import subprocess
import sys

import pytest

DRIVERS = (
    "aiobotocore", "asyncpg", "confluent_kafka", "greenlet", "pamqp", "redis", "sqlalchemy",
)  # fmt: skip
CLIENTS = ("httpx", "httpcore")
SERVERS = ("h11", "httptools", "starlette", "uvicorn", "uvloop", "watchfiles")
TERMINAL = ("pygments", "rich")
METADATA = ("importlib.metadata",)
TOKENS = ("cryptography", "jwt")
SELDOM = ("cronsim", "zoneinfo", *TOKENS)
CONSOLE = ("jinja2", "oyez.console")


@pytest.mark.parametrize(
    ("code", "unused"),
    [
        (
            "import oyez",
            (*DRIVERS, *CLIENTS, *SERVERS, *TERMINAL, *METADATA, *SELDOM, "apsw", "click"),
        ),
        (
            "import oyez.cli; oyez.cli.root.main(['--help'], standalone_mode=False)",
            (*DRIVERS, *CLIENTS, *SERVERS, *TERMINAL, *METADATA, "apsw"),
        ),
        (
            "import oyez.cli.run",
            (*DRIVERS, *CLIENTS, *TERMINAL, *METADATA, *SELDOM, *CONSOLE, "h11", "apsw"),
        ),
        (
            "import oyez.gateway, oyez.identity as i; i.Signer('shop', i.new_key())",
            (*DRIVERS, *CLIENTS, *TERMINAL, *TOKENS, "apsw"),
        ),
        (
            "import oyez.stores.sqlite, oyez.brokers.embedded.broker",
            (*DRIVERS, *CLIENTS, *SERVERS, *TERMINAL, *METADATA, "click"),
        ),
    ],
)
def test_it_loads_nothing_that_it_may_never_use(code: str, unused: tuple[str, ...]) -> None:
    loaded = _loaded(code)
    assert "oyez.errors" in loaded
    assert sorted(loaded & {*unused}) == []


@pytest.mark.parametrize("code", ["import oyez", "import oyez.cli", "import oyez.cli.run"])
def test_no_adapter_is_loaded_before_it_is_chosen(code: str) -> None:
    chosen = ("oyez.brokers.", "oyez.stores.", "oyez.sqlite", "oyez.postgresql", "oyez.sqlalchemy")
    storage = ("oyez.brokers.claim_check", "oyez.brokers.kit")
    loaded = [name for name in _loaded(code) if name.startswith(chosen)]
    assert [name for name in loaded if not name.startswith(storage)] == []


def _loaded(code: str) -> set[str]:
    """The modules of a fresh process that has run the code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('\\n', *sys.modules, sep='\\n')"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {*done.stdout.splitlines()}
