"""The partition of a key is the one that Kafka's own clients compute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez.partitioning import murmur2, partition_of, partition_without_key

# org.apache.kafka.common.utils.UtilsTest.testMurmur2, as signed numbers of 32 bits
VECTORS = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}


@pytest.mark.parametrize("key", VECTORS)
def test_murmur2_gives_what_kafka_gives(key: str) -> None:
    assert murmur2(key.encode()) == VECTORS[key] % 2**32
    for partitions in (1, 7, 8, 1_000):
        assert partition_of(key, partitions) == (VECTORS[key] & 0x7FFFFFFF) % partitions


@given(st.binary(max_size=40))
def test_murmur2_has_32_bits(data: bytes) -> None:
    assert 0 <= murmur2(data) < 2**32


@given(st.text(), st.integers(1, 10_000))
def test_a_partition_is_within_range(text: str, partitions: int) -> None:
    text = text.encode(errors="ignore").decode()
    assert 0 <= partition_of(text, partitions) < partitions
    assert 0 <= partition_without_key(text, partitions) < partitions


def test_keys_and_ids_spread() -> None:
    texts = [f"order-{number}" for number in range(8_000)]
    for place in (partition_of, partition_without_key):
        counts = [0] * 8
        for text in texts:
            counts[place(text, 8)] += 1
        assert min(counts) > 800
        assert max(counts) < 1_200
