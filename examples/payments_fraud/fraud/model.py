"""A model of `river`: a logistic regression over the facts, which learns from one label at a time.

Each version is kept, so a decision can be made again by the model of its time; and as versions
learn the same labels in the same order, a version can be made again, too.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterable
from typing import Any, Protocol

from oyez import Service


class Asked(Protocol):
    """What judges facts."""

    version: int

    def suspicion(self, facts: dict[str, float]) -> float:
        """Return the probability that this is fraud."""
        ...


class Model:
    """A version of the model; 0 has learnt nothing and suspects nobody."""

    def __init__(self, version: int = 0, weights: str = "") -> None:
        self.version = version
        self._learner: Any = None
        if version:
            # Only `weights` writes this, into a store that is Fraud's alone.
            self._learner = pickle.loads(base64.b64decode(weights))  # noqa: S301

    @property
    def weights(self) -> str:
        """What a store keeps of it."""
        return base64.b64encode(pickle.dumps(self._learner)).decode()

    def suspicion(self, facts: dict[str, float]) -> float:
        """Return the probability that this is fraud, to six places."""
        if self._learner is None:
            return 0.0
        return round(float(self._learner.predict_proba_one(facts).get(True, 0.0)), 6)

    def learn(self, labels: Iterable[tuple[dict[str, float], bool]]) -> Model:
        """Return the next version, which has learnt these, too; this one is not to be used more."""
        from river import linear_model, optim  # most tests need none of it

        learnt = Model()
        learnt.version = self.version + 1
        learnt._learner = self._learner or linear_model.LogisticRegression(optim.SGD(0.1))
        for facts, fraud in labels:
            learnt._learner.learn_one(facts, fraud)
        return learnt


class Models:
    """The newest model of a service's store, looked for once in a second."""

    def __init__(self, service: Service) -> None:
        import river.linear_model  # takes seconds, so now, and not while a transfer waits
        import river.optim  # noqa: F401

        self._service = service
        self._model: Asked = Model()
        self._looked = 0.0

    async def newest(self, now: float) -> Asked:
        """Return the newest model that was there a second ago, or later."""
        if now - self._looked >= 1.0:
            self._looked = now
            sql = "select version, weights from model where version > :version"
            for row in await self._service.fetch(
                f"{sql} order by version desc limit 1", version=self._model.version
            ):
                self._model = Model(**row)
        return self._model
