"""The payment provider as Payments sees it: two calls over HTTP, each safe to repeat."""

from __future__ import annotations

import os
from typing import Protocol

import httpx

URL = os.environ.get("SHOP_PROVIDER", "http://127.0.0.1:8090")
DEADLINE = 2.0
"""Seconds after which a call counts as failed; the money may have moved all the same."""


class ProviderUnavailable(Exception):
    """No answer, or none that says what became of the money: ask again with the same key."""


class PaymentProvider(Protocol):
    """What Payments needs of a provider. A repeat with the same key moves nothing twice."""

    async def charge(self, key: str, order_id: str, token: str, cents: int) -> bool:
        """Capture the money; False when the card is declined. Raises ProviderUnavailable."""
        ...

    async def refund(self, key: str, charge_key: str) -> bool:
        """Give back what a charge captured; whether it had. A charge under the key that comes
        later is declined. Raises ProviderUnavailable."""
        ...


class HttpPaymentProvider:
    """A provider that speaks HTTP."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def charge(self, key: str, order_id: str, token: str, cents: int) -> bool:
        """See `PaymentProvider.charge`."""
        body = {"amount_cents": cents, "currency": "EUR", "token": token, "reference": order_id}
        answer = await self._post("/charges", key, body)
        return answer.status_code == 201

    async def refund(self, key: str, charge_key: str) -> bool:
        """See `PaymentProvider.refund`."""
        answer = await self._post("/refunds", key, {"charge_key": charge_key})
        refunded: bool = answer.json()["status"] == "refunded"
        return refunded

    async def _post(self, path: str, key: str, body: dict[str, object]) -> httpx.Response:
        try:
            answer = await self._client.post(path, json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError as error:
            raise ProviderUnavailable(f"{path}: {type(error).__name__}") from error
        if answer.status_code not in (200, 201, 402):
            raise ProviderUnavailable(f"{path}: answered {answer.status_code}")
        return answer
