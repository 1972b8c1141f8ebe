"""The kit itself, on the simplest server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

import servers
from servers import Server, server


async def ask(host: str, port: int, password: str, *commands: str) -> list[str]:
    """Redis's answers to commands, in its inline form."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write("".join(f"{line}\r\n" for line in (f"AUTH {password}", *commands)).encode())
    answers = [(await reader.readline()).decode().strip() for _ in range(len(commands) + 1)]
    writer.close()
    return answers[1:]


def password(redis: Server) -> str:
    return redis.url.partition("://:")[2].partition("@")[0]


async def test_a_killed_server_keeps_what_it_acknowledged():
    redis = server("redis")
    secret = password(redis)
    writes = [f"SET kit:{number} {number}" for number in range(100)]
    assert await ask(redis.host, redis.port, secret, *writes) == ["+OK"] * 100
    try:
        await asyncio.to_thread(redis.kill)
        assert not redis.is_up()
        with pytest.raises(pytest.skip.Exception, match="redis is not running: make services"):
            server("redis")
    finally:
        await asyncio.to_thread(redis.start)
    assert server("redis") == redis
    keys = " ".join(f"kit:{number}" for number in range(100))
    assert await ask(redis.host, redis.port, secret, f"EXISTS {keys}", f"DEL {keys}") == [
        ":100",
        ":100",
    ]


async def test_killing_and_starting_twice_is_harmless():
    redis = server("redis")
    try:
        for command in (redis.kill, redis.kill, redis.start, redis.start):
            await asyncio.to_thread(command)
    finally:
        await asyncio.to_thread(redis.start)
    assert redis.is_up()


async def test_a_proxy_stands_in_for_a_server():
    redis = server("redis")
    async with redis.proxy() as proxy:
        assert await ask(proxy.host, proxy.port, password(redis), "PING") == ["+PONG"]


def test_kafka_is_brought_up_under_any_identity(tmp_path):
    """One in 64 begins with a hyphen."""
    server("kafka")
    script = f"""
import runpy, sys, uuid
uuid.uuid4 = lambda: uuid.UUID(bytes=bytes([0b111110_00]) * 16)
sys.argv = ["services", "up", "kafka"]
runpy.run_path({str(servers.ROOT / "scripts" / "services.d")!r}, run_name="__main__")
"""
    apart = tmp_path / "services"
    try:
        ran = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OYEZ_SERVICES": str(apart)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert "cluster.id=-" in (apart / "kafka" / "data" / "meta.properties").read_text()
    finally:
        servers.down("kafka", apart)


def test_what_was_never_brought_up_is_skipped_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "SERVICES", tmp_path)
    with pytest.raises(pytest.skip.Exception, match="kafka is not running: make services"):
        server("kafka")
    (tmp_path / "services.json").write_text(json.dumps({"redis": {}}))
    with pytest.raises(pytest.skip.Exception, match="kafka is not running: make services"):
        server("kafka")
