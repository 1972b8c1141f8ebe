from __future__ import annotations

import os
import signal
import smtplib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHOP = Path(__file__).resolve().parents[2]


def refused(name: str, *options: str) -> tuple[int, str]:
    """The exit code and standard error of a server that should not start."""
    ended = subprocess.run(
        [sys.executable, "-m", f"outside.{name}", *options],
        cwd=SHOP,
        env={**os.environ, "PYTHONPATH": str(SHOP)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("name", ["provider", "mailbox", "sms", "accounts"])
def test_sigterm_exits_0_at_once(start: Any, tmp_path: Path, name: str) -> None:
    running = start(name, tmp_path)
    assert running.http.get("/healthz").status_code == 200  # leaves an idle connection open
    if name == "mailbox":
        host, _, port = running.addresses["smtp"].rpartition(":")
        idle = smtplib.SMTP(host, int(port), timeout=20)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(10) == 0
    if name == "mailbox":
        idle.close()


def test_a_client_that_is_gone_before_its_body_has_come_is_no_error(
    start: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    running = start("sms", tmp_path)
    host, _, port = running.addresses["http"].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(
            b"POST /messages HTTP/1.1\r\nHost: sms\r\nContent-Type: application/json\r\n"
            b"Idempotency-Key: gone\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 100")  # it has begun to read
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(10) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("provider", "--listen"),
        ("mailbox", "--listen"),
        ("mailbox", "--smtp"),
        ("sms", "--listen"),
        ("accounts", "--listen"),
    ],
)
def test_a_used_port_is_one_line_and_exit_2(tmp_path: Path, name: str, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        others = ("--listen", "127.0.0.1:0") if option == "--smtp" else ()
        code, error = refused(
            name, option, f"127.0.0.1:{port}", *others, "--data", str(tmp_path / "books")
        )
    assert code == 2
    assert error.count("\n") == 1
    assert f"127.0.0.1:{port}" in error
    assert not (tmp_path / "books").exists()


@pytest.mark.parametrize("address", ["", "8090", "127.0.0.1:", ":8090", "127.0.0.1:65536", "h:-1"])
def test_a_wrong_address_is_one_line_and_exit_2(address: str) -> None:
    code, error = refused("sms", f"--listen={address}")
    assert (code, error.count("\n")) == (2, 1)


def test_books_that_are_no_database_are_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "sms.db").write_bytes(b"not a database, " * 100)
    code, error = refused("sms", "--listen", "127.0.0.1:0", "--data", str(tmp_path))
    assert (code, error.count("\n")) == (2, 1)
    assert "sms.db" in error
    assert (tmp_path / "sms.db").read_bytes() == b"not a database, " * 100


def test_a_folder_that_is_a_file_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, error = refused("sms", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "file"))
    assert (code, error.count("\n")) == (2, 1)
