"""Signatures as Standard Webhooks describes them, and the secrets that sign.

https://github.com/standard-webhooks/standard-webhooks, version 1.0. No secret is stored: each is
derived from the master key of the service, the subscription and a number, which grows by one when
the secret is rotated. So neither the database nor a copy of it can sign.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable

import msgspec

PREFIX = "whsec_"
"""What a secret begins with, so that it is recognized where it does not belong."""


class Secret(msgspec.Struct, frozen=True):
    """One of the secrets of a subscription."""

    number: int
    until: float | None = None
    """When it stops to sign, in seconds since 1970; None for the current one."""


def derive(master: bytes, subscription: str, secret: Secret) -> str:
    """Return the secret as its subscriber gets it: ``whsec_`` and 32 bytes in base64."""
    of = f"oyez webhook {subscription} {secret.number}".encode()
    return PREFIX + base64.b64encode(hmac.digest(master, of, "sha256")).decode()


def sign(secrets: Iterable[str], message: str, timestamp: int, body: bytes) -> str:
    """Return the header ``webhook-signature``: a signature by each secret, separated by spaces."""
    signed = f"{message}.{timestamp}.".encode() + body
    return " ".join(f"v1,{_signature(secret, signed)}" for secret in secrets)


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
