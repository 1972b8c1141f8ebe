"""What the URL of Kafka may set."""

from __future__ import annotations

from typing import Annotated, Literal

from oyez.brokers.kit.options import StreamOptions
from oyez.endpoint import BatchBytes, Bytes, Retention, Seconds, Some, limits

REPLICAS = 3
"""Copies of each record, where there are so many brokers."""


class KafkaOptions(StreamOptions, frozen=True, kw_only=True):
    """How the Kafka broker behaves. The defaults are the most durable that a cluster can give."""

    retention: Retention = 7 * 86_400.0
    """Seconds for which new topics keep a record (``retention.ms``)."""
    batch_bytes: BatchBytes = 4 * 1024 * 1024
    """Bytes that one reader holds before it stops fetching; one message set may exceed it."""
    deadline: Annotated[float, limits(0.001, 600.0, "seconds")] = 10.0
    """Seconds after which a call gives up with BrokerUnavailable."""
    poll: Seconds = 1.0
    """Seconds between two looks for new topics, and between two commits of group offsets."""
    replication_factor: Some = 0
    """Replicas of new topics; 0 stands for three, or as many as there are brokers."""
    min_insync_replicas: Some = 0
    """How many of them must have a record before it is confirmed; 0 for two of three or more."""
    max_message_bytes: Bytes = 2 * 1024 * 1024
    """The largest record that new topics take, headers and data together."""
    acks: Literal["all", "1"] = "all"
    """Who must have a record before it is confirmed; 1, the leader alone, can lose records."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """How records are compressed on their way and in the topic."""
    linger: Annotated[float, limits(0.0, 900.0, "seconds")] = 0.0
    """Seconds for which records wait for more to travel with them."""
    tls: bool = False
    """Encrypt, and verify the servers."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """How the URL's user and password are shown to the server."""
