"""The challenger, with what requirements.txt of the example pins."""

from __future__ import annotations

from recommend.als import similar


def test_what_the_same_people_look_at_is_alike() -> None:
    pairs = [
        (f"{kind}{person}", f"{kind}{item}")
        for kind in "ab"
        for person in range(30)
        for item in range(8)
        if (person + item) % 3
    ]
    found = similar(pairs)
    assert found.keys() == {f"{kind}{item}" for kind in "ab" for item in range(8)}
    for item, others in found.items():
        assert item not in others
        nearest = sorted(others, key=lambda other: -others[other])[:3]
        assert {other[0] for other in nearest} == {item[0]}
