"""What of a cluster's configuration loses acknowledged events, or makes them hard to keep."""

from __future__ import annotations

from collections.abc import Mapping

from oyez.brokers.kafka.cluster import Topic
from oyez.brokers.kafka.options import KafkaOptions
from oyez.brokers.kit.findings import Findings
from oyez.ports import Finding

DOWNTIME = 86_400.0
"""Seconds for which a service may be down without missing an event."""


def judge(
    topics: Mapping[str, Topic], options: KafkaOptions, *, brokers: int, clear_password: bool
) -> list[Finding]:
    """One finding for each thing that is wrong; see `Broker.inspect`."""
    findings = Findings()
    tell = findings.tell
    tell(
        options.acks != "all",
        "acks is 1: an event is confirmed before a second broker has it, and lost with the first",
        "take acks=1 out of system.broker",
    )
    tell(
        brokers == 1,
        "the cluster has one broker: while it is down nothing is delivered, and what is on its "
        "disk is nowhere else",
        "run three brokers for anything that matters",
        grave=False,
    )
    tell(
        clear_password,
        "the password crosses the network as it is: sasl_mechanism is PLAIN, and tls is off",
        "add tls=true, or sasl_mechanism=SCRAM-SHA-512, to system.broker",
        grave=False,
    )
    for name, topic in sorted(topics.items()):
        findings.found += _judge(name, topic, options, brokers)
    return findings.found


def _judge(name: str, topic: Topic, options: KafkaOptions, brokers: int) -> list[Finding]:
    findings = Findings(f"topic {name}: ")
    tell = findings.tell

    def alter(setting: str) -> str:
        topic = f"--entity-type topics --entity-name {name}"
        return f"kafka-configs --alter {topic} --add-config {setting}"

    config = topic.config
    insync = int(config.get("min.insync.replicas", 1))
    retention = float(config.get("retention.ms", -1)) / 1000
    limit = int(config.get("max.message.bytes", options.max_message_bytes))
    tell(
        topic.offline > 0,
        f"{topic.offline} partitions have no leader: they are neither written nor read",
        "start the brokers that hold them",
    )
    tell(
        topic.behind > 0,
        f"{topic.behind} partitions have fewer replicas in sync than they should",
        "start the brokers that are down: kafka-topics --describe --under-replicated-partitions",
    )
    tell(
        topic.replicas == 1 and brokers > 1,
        f"replication.factor is 1 on {brokers} brokers: events are lost with one disk",
        "give each partition three replicas with kafka-reassign-partitions",
    )
    tell(
        topic.replicas > 1 and insync < 2,
        "min.insync.replicas is 1: an event is confirmed while only one broker has it",
        alter("min.insync.replicas=2"),
    )
    tell(
        bool(config) and topic.replicas == 1 and config.get("flush.messages") != "1",
        "flush.messages is not 1: without a second replica, a power cut loses confirmed events",
        alter("flush.messages=1"),
    )
    tell(
        config.get("unclean.leader.election.enable") == "true",
        "unclean.leader.election.enable is true: a replica that lacks confirmed events may lead",
        alter("unclean.leader.election.enable=false"),
    )
    tell(
        "compact" in config.get("cleanup.policy", ""),
        "cleanup.policy is compact: of each key only the last event is kept",
        alter("cleanup.policy=delete"),
    )
    wanted = max(options.retention, DOWNTIME)
    tell(
        0 <= retention < wanted,
        f"retention.ms keeps events for {retention:.0f} s, less than {wanted:.0f} s: a service "
        "that is down for longer misses them",
        alter(f"retention.ms={wanted * 1000:.0f}"),
    )
    tell(
        int(config.get("retention.bytes", -1)) >= 0,
        f"retention.bytes is {config.get('retention.bytes')}: events may be deleted before their "
        "time",
        alter("retention.bytes=-1"),
        grave=False,
    )
    tell(
        limit < options.max_message_bytes,
        f"max.message.bytes is {limit}, less than {options.max_message_bytes}: larger events are "
        "refused",
        alter(f"max.message.bytes={options.max_message_bytes}"),
        grave=False,
    )
    tell(
        topic.partitions != options.partitions,
        f"it has {topic.partitions} partitions, not {options.partitions} as system.partitions says",
        "set system.partitions to it; altering the topic would move keys to other partitions",
        grave=False,
    )
    tell(
        not config,
        "its configuration can't be told: the user may not ask for it",
        "permit DescribeConfigs on topics (an ACL)",
        grave=False,
    )
    return findings.found
