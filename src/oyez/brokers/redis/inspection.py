"""The faults of Redis's configuration that lose acknowledged events or endanger them."""

from __future__ import annotations

from collections.abc import Mapping

from oyez.brokers.kit.findings import Findings
from oyez.ports import Finding


def parse_info(text: bytes) -> dict[str, str]:
    """Return the values of an INFO reply, by name."""
    lines = [line.partition(":") for line in text.decode().splitlines()]
    return {name: value for name, colon, value in lines if colon}


def judge(settings: Mapping[str, str], info: Mapping[str, str]) -> list[Finding]:
    """Return the faults of Redis's settings, with their remedies."""
    findings = Findings()
    tell = findings.tell
    tell(
        settings.get("appendonly") == "no",
        "appendonly is off: a crash of Redis loses acknowledged events",
        "redis-cli config set appendonly yes, and the same in redis.conf",
    )
    tell(
        settings.get("appendonly") == "yes" and settings.get("appendfsync") != "always",
        f"appendfsync is {settings.get('appendfsync')}: a power cut loses the last second of "
        "acknowledged events",
        "redis-cli config set appendfsync always, and the same in redis.conf",
    )
    tell(
        settings.get("maxmemory", "0") != "0"
        and settings.get("maxmemory-policy", "noeviction") != "noeviction",
        f"maxmemory-policy is {settings.get('maxmemory-policy')}: when memory is short, Redis "
        "deletes whole streams",
        "redis-cli config set maxmemory-policy noeviction, and the same in redis.conf",
    )
    tell(
        info.get("aof_last_write_status", "ok") != "ok",
        "the last write of the append-only file failed",
        "free space on Redis's disk; see its log",
    )
    tell(
        info.get("role") == "slave",
        "this is a replica, which accepts no writes",
        "set system.broker to the primary",
    )
    tell(
        not settings,
        "CONFIG GET is not permitted, so the durability is unknown",
        "permit it (ACL +config|get), and make sure that appendfsync is always",
        grave=False,
    )
    return findings.found
