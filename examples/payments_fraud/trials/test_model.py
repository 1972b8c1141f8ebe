"""The versions of the model, learnt by river from what customers say."""

from __future__ import annotations

from datetime import datetime, timedelta

from fraud.events import Screen, TransferCleared, TransferReviewed
from fraud.model import Model
from fraud.service import service
from oyez.testing import Running

NOON = datetime.fromisoformat("2026-11-01T12:00:00+00:00")


def asked(number: int, minutes: float, *, source: str, device: str) -> Screen:
    return Screen(
        transfer_id=str(number), source=source, cents=1_000, device=device, country="NL",
        latitude=52.37, longitude=4.90, at=NOON + timedelta(minutes=minutes),
    )  # fmt: skip


async def test_reviews_are_learnt_and_the_version_is_kept_with_the_decision(
    running: Running,
) -> None:
    async with running(service) as system:
        for number in range(40):
            guilty = number % 2
            source = f"customer {number}"
            device = "emulator" if guilty else f"phone {number}"
            transfer = asked(number, number * 3, source=source, device=device)
            await system.publish(transfer, service="transfers")
            await system.settled()
            review = TransferReviewed(transfer_id=str(number), fraud=bool(guilty))
            await system.publish(review, service="gateway")
        await system.settled()
        assert {each.model for each in system.announced(TransferCleared)} == {0}
        await system.advance(4.0)
        rows = await system.fetch("fraud", "select version, weights from model order by version")
        assert [row["version"] for row in rows] == [1]
        model = Model(**rows[0])
        usual = dict.fromkeys(("burst", "sharing", "speed", "amount", "device"), 0.0)
        assert model.suspicion({**usual, "sharing": 9.0, "burst": 5.0}) > 0.8
        assert model.suspicion(usual) < 0.6


def test_the_same_labels_make_the_same_model() -> None:
    labels = [({"burst": float(n % 5), "speed": n / 10}, n % 3 == 0) for n in range(50)]
    facts = {"burst": 2.0, "speed": 1.0}
    first = Model().learn(labels)
    again = Model(first.version, first.weights).learn(labels)
    straight = Model().learn(labels).learn(labels)
    assert again.version == straight.version == 2
    assert again.suspicion(facts) == straight.suspicion(facts)
