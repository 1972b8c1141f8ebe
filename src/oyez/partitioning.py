"""The partition of a key: the same on every broker and in every language. The names of streams.

``partition = murmur2(key) & 0x7fffffff mod P`` as ``org.apache.kafka.common.utils.Utils`` computes
it for Kafka's default partitioner.
"""

from __future__ import annotations

from functools import lru_cache
from struct import unpack_from
from zlib import crc32

CONTRACTS = "_contracts"
"""The stream ``SYSTEM._contracts``: what is deployed."""

_MASK = 0xFFFFFFFF
_M = 0x5BD1E995


def is_own(stream: str) -> bool:
    """Return whether a stream holds Oyez's own records, no events: its last part begins with _."""
    return stream.rpartition(".")[2].startswith("_")


def murmur2(data: bytes) -> int:
    """Return the MurmurHash2 of the data: 32 bits, seed 0x9747b28c, unsigned."""
    length = len(data)
    h = 0x9747B28C ^ length
    words = length >> 2
    for k in unpack_from(f"<{words}I", data):
        k = (k * _M) & _MASK
        k ^= k >> 24
        h = ((h * _M) & _MASK) ^ ((k * _M) & _MASK)
    tail = words << 2
    rest = length & 3
    if rest == 3:
        h ^= data[tail + 2] << 16
    if rest >= 2:
        h ^= data[tail + 1] << 8
    if rest >= 1:
        h = ((h ^ data[tail]) * _M) & _MASK
    h = ((h ^ (h >> 13)) * _M) & _MASK
    return h ^ (h >> 15)


@lru_cache(maxsize=65_536)
def partition_of(key: str, partitions: int) -> int:
    """Return the partition, 0 to ``partitions`` - 1, of a key's UTF-8 bytes.

    A surrogate stands for a byte that is not UTF-8 (``surrogateescape``).
    """
    return (murmur2(key.encode(errors="surrogateescape")) & 0x7FFFFFFF) % partitions


def partition_without_key(event_id: str, partitions: int) -> int:
    """Return the partition of an event without a key: by its id, so the same for a resend."""
    return crc32(event_id.encode()) % partitions
