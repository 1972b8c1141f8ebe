"""The versions of the model, learnt by river from what customers say."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec import json
from msgspec.structs import asdict

from check import TABLES
from fraud.events import Case, Screen, TransferCleared, TransferReviewed
from fraud.model import Model
from fraud.service import service
from oyez.testing import Running

NOON = datetime.fromisoformat("2026-11-01T12:00:00+00:00")


def asked(number: int, minutes: float, *, source: str, device: str) -> Screen:
    return Screen(
        transfer_id=str(number), source=source, cents=1_000, device=device, country="NL",
        place=(52.37, 4.90), at=NOON + timedelta(minutes=minutes),
    )  # fmt: skip


def label(number: int, version: int) -> dict[str, Any]:
    facts = {"burst": float(number % 5), "speed": number / 10}
    told: dict[str, Any] = {
        "number": number,
        "facts": facts,
        "reason": "",
        "score": 0.0,
        "model": 0,
    }
    transfer = asdict(asked(number, 0.0, source="ada", device="phone"))
    case = Case(**transfer, burst=1, sharing=1, **told)
    return {"version": version, "decision": json.encode(case), "fraud": number % 3 == 0}


async def test_reviews_are_learnt_and_the_version_is_kept_with_the_decision(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fraud.service.LOOK", 0.0)  # the clock of the test is not that of processes
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
        rows = await system.fetch("fraud", TABLES["fraud"]["labels"])
        assert [row["version"] for row in rows] == [1] * 40
        model = Model()
        model.learn(rows)
        usual = dict.fromkeys(("burst", "sharing", "speed", "amount", "device"), 0.0)
        assert model.suspicion({**usual, "sharing": 9.0, "burst": 5.0}) > 0.8
        assert model.suspicion(usual) < 0.6
        await system.publish(asked(40, 900, source="eve", device="phone"), service="transfers")
        await system.settled()
        assert system.announced(TransferCleared)[-1].model == 1


def test_a_version_is_what_the_labels_up_to_it_make() -> None:
    labels = [label(n, 1 + n // 25) for n in range(50)]
    facts = {"burst": 2.0, "speed": 1.0}
    first, straight, again = Model(), Model(), Model()
    first.learn(labels[:25])
    straight.learn(labels)
    again.learn(labels[:25])
    again.learn(labels)  # those of the first version are known
    assert (first.version, straight.version, again.version) == (1, 2, 2)
    assert again.suspicion(facts) == straight.suspicion(facts) != first.suspicion(facts)
