"""Wire 1.0: the rules that let a program in any language join a system, and their test vectors.

`docs/wire/1.0.md` is the text; `RULES` has a rule's level and its sentence in short, and `vectors`
what the text refers to: events as each broker carries them, keys, times, events to be refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from importlib import resources
from typing import Any, NamedTuple

import msgspec

VERSION = "1.0"
SETS = ("events", "keys", "times", "refused")
"""The names of the sets of vectors."""


class Level(StrEnum):
    """What a program promises; each level is certified by itself."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
    SERVICE = "service"


class Rule(NamedTuple):
    """A rule of the wire."""

    levels: frozenset[Level]
    """Those that it binds."""
    what: str


_ALL = frozenset(Level)
_WRITES = frozenset((Level.PRODUCER, Level.SERVICE))
_READS = frozenset((Level.CONSUMER, Level.SERVICE))
_SERVES = frozenset((Level.SERVICE,))

RULES: Mapping[str, Rule] = {
    "W1": Rule(_ALL, "an event has specversion 1.0, an id, a source and a type"),
    "W2": Rule(_ALL, "it is a CloudEvent in binary or structured mode, as its broker carries it"),
    "W3": Rule(_ALL, "names and values of attributes keep their limits"),
    "W4": Rule(_ALL, "times are RFC 3339"),
    "W5": Rule(_ALL, "source and id together name the event, and neither does alone"),
    "W6": Rule(_ALL, "the key is partitionkey, or else subject"),
    "W7": Rule(_WRITES, "an event is in the partition that murmur2 of its key gives"),
    "W8": Rule(_ALL, "data is strict JSON of at most 1 MiB"),
    "W9": Rule(_ALL, "dataschema tells the version of the type"),
    "W10": Rule(_SERVES, "what follows from an event names its cause and its correlation"),
    "W11": Rule(_WRITES, "a producer writes to its own stream"),
    "W12": Rule(_WRITES, "an event is sent until the broker confirms it, each time the same"),
    "W13": Rule(_WRITES, "events of one key are sent in order"),
    "W14": Rule(_READS, "an event is acknowledged after it has been handled"),
    "W15": Rule(_READS, "events of one key are handled in order"),
    "W16": Rule(_READS, "a bad event is refused and holds up nothing else"),
    "W17": Rule(_READS, "what is refused is kept with its bytes and the reason"),
    "W18": Rule(_READS, "a newer version is refused, and never read as an older one"),
    "W19": Rule(_READS, "unknown types and attributes are skipped"),
    "W20": Rule(_READS, "a command is for its recipient alone, until it expires"),
    "W21": Rule(_SERVES, "the position is committed with the effects, and not before"),
    "W22": Rule(_SERVES, "the position is guarded by the epoch of the claim"),
    "W23": Rule(_SERVES, "the inbox row is committed with the effects"),
    "W24": Rule(_SERVES, "the inbox tells events apart by source, id and handler"),
    "W25": Rule(_SERVES, "what is announced enters the outbox with the effects"),
    "W26": Rule(_SERVES, "the outbox is published in order per key"),
    "W27": Rule(_SERVES, "a row leaves the outbox after the broker's confirm"),
    "W28": Rule(_SERVES, "an event that fails parks its key, and nothing else"),
    "W29": Rule(_SERVES, "another replica takes over within 15 seconds"),
    "W30": Rule(_SERVES, "SIGTERM ends the process, and what is in flight with it"),
}


def vectors(name: str) -> Any:
    """Return a set of vectors, one of `SETS`."""
    text = resources.files(__name__).joinpath("vectors", f"{name}.json").read_bytes()
    return msgspec.json.decode(text)
