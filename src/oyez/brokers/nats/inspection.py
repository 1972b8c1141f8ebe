"""The faults in the configuration of servers and streams that lose acknowledged events."""

from __future__ import annotations

from collections.abc import Iterable

from oyez.brokers.kit.findings import Findings
from oyez.brokers.nats.jetstream import SECOND, StreamConfig, StreamInfo
from oyez.brokers.nats.link import ServerInfo
from oyez.brokers.nats.options import NatsOptions
from oyez.ports import Finding


def judge(
    infos: Iterable[StreamInfo], options: NatsOptions, server: ServerInfo, *, durable: bool
) -> list[Finding]:
    """Return the faults that lose acknowledged records, or make them slow or hard to operate."""
    findings = Findings()
    tell = findings.tell
    tell(
        not durable,
        "the servers may answer before a record is on disk (unless told otherwise they flush it "
        "within 2 minutes): a power cut loses acknowledged events",
        "set jetstream { sync_interval: always } on every server, then add sync=always to "
        "system.broker",
    )
    tell(
        server.max_payload < 1_048_576,
        f"max_payload is {server.max_payload} bytes: larger events are refused",
        "set max_payload: 1MB on every server, or system.claim_check",
        grave=False,
    )
    tell(
        not server.at_least(2, 12),
        f"nats-server {server.version} has no atomic batches: publishing is slow",
        "upgrade to 2.12 or newer, then nats stream edit NAME --allow-batch",
        grave=False,
    )
    for info in infos:
        findings.found += _judge_stream(info.config, options, clustered=info.clustered)
    return findings.found


def _judge_stream(config: StreamConfig, options: NatsOptions, *, clustered: bool) -> list[Finding]:
    name = config.name
    findings = Findings(f"stream {name} ")
    tell = findings.tell
    edit = f"nats stream edit {name}"
    anew = f"make it anew: nats stream rm {name}, once its events are handled"
    tell(config.storage != "file", "is in memory: a restart loses acknowledged events", anew)
    tell(
        config.retention != "limits",
        f"has retention {config.retention}: events go when a consumer has had them",
        anew,
    )
    for limit in ("max_msgs", "max_bytes", "max_msgs_per_subject"):
        most = getattr(config, limit)
        tell(
            most > 0 and config.discard == "old",
            f"has {limit} {most} and drops the oldest events, handled or not",
            f"{edit} --{limit.replace('_', '-')}=-1",
        )
    age = config.max_age / SECOND
    tell(
        0 < age < options.retention - 1,
        f"keeps events for {age:.0f} s, not {options.retention:.0f}",
        f"{edit} --max-age={options.retention:.0f}s",
    )
    tell(
        clustered and config.num_replicas < 2,
        "has one copy in a cluster: losing that server loses acknowledged events",
        f"{edit} --replicas=3, and add replicas=3 to system.broker",
    )
    tell(config.sealed, "is sealed: it takes no events", anew)
    tell(
        config.mirror is not None or bool(config.sources),
        "is filled from another stream: its partitions may not be those of the keys",
        anew,
    )
    tell(
        not config.allow_direct,
        "does not allow direct reads: its lag can't be told",
        f"{edit} --allow-direct",
    )
    tell(
        not config.allow_atomic,
        "does not allow atomic batches: publishing is slow",
        f"{edit} --allow-batch",
        grave=False,
    )
    return findings.found
