"""A model of `river`: a logistic regression over the facts, which learns from one label at a time.

A version is what all labels up to its own make, in their order. So none is stored: who decides
learns the labels, and a decision can be made again by the model of its time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import json

from fraud.events import Case


class Model:
    """What customers have taught; version 0 has learnt nothing and suspects nobody."""

    def __init__(self) -> None:
        self.version = 0
        self._learner: Any = None

    def suspicion(self, facts: dict[str, float]) -> float:
        """Return the probability that this is fraud, to six places."""
        if self._learner is None:
            return 0.0
        return round(float(self._learner.predict_proba_one(facts).get(True, 0.0)), 6)

    def learn(self, labels: Iterable[Mapping[str, Any]]) -> None:
        """Learn whole versions of labels, in their order, but for those that are known."""
        from river import linear_model, optim  # most tests need none of it

        known = self.version
        self._learner = self._learner or linear_model.LogisticRegression(optim.SGD(0.1))
        for label in labels:
            if label["version"] > known:
                facts = json.decode(label["decision"], type=Case).facts
                self._learner.learn_one(facts, bool(label["fraud"]))
                self.version = label["version"]
