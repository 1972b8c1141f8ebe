"""The five-minute path, `make demo ARGS="--orders 200"`, on free ports in a folder of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from shop import copy_shop


def test_two_hundred_orders_balance_their_books(tmp_path: Path) -> None:
    shop = copy_shop(tmp_path)
    done = subprocess.run(
        [sys.executable, "demo.py", "--orders", "200"],
        cwd=shop.root,
        env=shop.environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The books balance." in done.stdout
    for outcome in ("shipped", "card declined", "out of stock", "p50", "p99"):
        assert outcome in done.stdout


def test_a_demo_that_finds_its_port_taken_says_so(tmp_path: Path) -> None:
    shop = copy_shop(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", shop.ports["8101"]))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "demo.py", "--orders", "1"],
            cwd=shop.root,
            env=shop.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert "services.orders.http" in done.stderr
    assert "in use" in done.stderr
