"""How providers sign their webhooks: Standard Webhooks, GitHub's way and Stripe's way.

Each is checked over the body as it came, byte for byte. Of several secrets each is tried with each
signature, always all of them, so that the time does not tell which one was close.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from oyez.gateway.exchange import Refusal
from oyez.gateway.http1 import Fields

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_MOST = 16
"""The limit of signatures in one request."""
_SECONDS = re.compile(r"[0-9]{1,12}")
_DELIVERY = re.compile(r"[\x21-\x7e]{1,200}")
_HEX = re.compile(r"[0-9a-f]{64}")
_PAIR = re.compile(r"\s*([a-z0-9]{1,8})=([0-9A-Za-z]{1,200})\s*")
_LEAST_KEY = 16
_INVALID = Refusal(401, "signature_invalid", "the signature is not valid for this body")


class UnfitSecret(Exception):
    """A secret that a scheme has no use for: what it expects, and what it found."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected = expected
        self.found = found


class Scheme(Protocol):
    """One way to sign a webhook."""

    def verify(self, fields: Fields, body: bytes, now: float) -> str | None:
        """Return the delivery's id, if its headers have one.

        ``now`` is in seconds since 1970. Raises :class:`Refusal`: 400 for headers that are missing
        or malformed, 401 for a signature that none of the secrets made, or too long ago.
        """
        ...


class Standard:
    """Standard Webhooks 1.0: HMAC-SHA256 (``v1``) and Ed25519 (``v1a``)."""

    def __init__(self, secrets: Sequence[str], tolerance: float) -> None:
        """``secrets`` begin with ``whsec_``, or with ``whpk_`` for public keys.

        Raises UnfitSecret for others, without showing them.
        """
        self._tolerance = tolerance
        self._keys = [_decoded(each, "whsec_") for each in secrets if each.startswith("whsec_")]
        publics = [_decoded(each, "whpk_") for each in secrets if each.startswith("whpk_")]
        if len(self._keys) + len(publics) < len(secrets):
            raise UnfitSecret("secrets that begin with whsec_ or whpk_", "another")
        if any(len(key) < _LEAST_KEY for key in self._keys):
            raise UnfitSecret(f"{_LEAST_KEY} bytes or more behind whsec_", "fewer")
        self._publics = [_public_key(each) for each in publics]

    def verify(self, fields: Fields, body: bytes, now: float) -> str | None:
        """See :class:`Scheme`."""
        delivery = _header(fields, b"webhook-id")
        if not _DELIVERY.fullmatch(delivery):
            raise _malformed("webhook-id")
        sent = _header(fields, b"webhook-timestamp")
        if not _SECONDS.fullmatch(sent):
            raise _malformed("webhook-timestamp")
        given = _header(fields, b"webhook-signature").split(" ")
        if len(given) > _MOST:
            raise _malformed("webhook-signature")
        message = f"{delivery}.{sent}.".encode() + body
        valid = False
        for version, _, text in (each.partition(",") for each in given):
            try:
                signature = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                continue
            if version == "v1":
                for key in self._keys:
                    valid |= hmac.compare_digest(_hmac(key, message), signature)
            elif version == "v1a":
                for public in self._publics:
                    valid |= _verifies(public, signature, message)
        if not valid:
            raise _INVALID
        _check_age(sent, now, self._tolerance)
        return delivery


class GitHub:
    """GitHub's ``X-Hub-Signature-256``. It signs the body alone: neither headers nor a time."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [each.encode() for each in secrets]

    def verify(self, fields: Fields, body: bytes, now: float) -> str | None:
        """See :class:`Scheme`."""
        delivery = _header(fields, b"x-github-delivery")
        if not _DELIVERY.fullmatch(delivery):
            raise _malformed("x-github-delivery")
        prefix, _, text = _header(fields, b"x-hub-signature-256").partition("=")
        if prefix != "sha256" or not _HEX.fullmatch(text):
            raise _malformed("x-hub-signature-256")
        signature = bytes.fromhex(text)
        valid = False
        for key in self._keys:
            valid |= hmac.compare_digest(_hmac(key, body), signature)
        if not valid:
            raise _INVALID
        return delivery


class Stripe:
    """Stripe's ``Stripe-Signature``, scheme ``v1``. The delivery's id is in the body."""

    def __init__(self, secrets: Sequence[str], tolerance: float) -> None:
        self._keys = [each.encode() for each in secrets]
        self._tolerance = tolerance

    def verify(self, fields: Fields, body: bytes, now: float) -> str | None:
        """See :class:`Scheme`."""
        given = _header(fields, b"stripe-signature").split(",")
        pairs = [found.groups() for each in given if (found := _PAIR.fullmatch(each))]
        times = [value for name, value in pairs if name == "t"]
        texts = [value for name, value in pairs if name == "v1"]
        malformed = len(pairs) < len(given) or len(given) > _MOST or len(times) != 1
        if malformed or not _SECONDS.fullmatch(times[0]):
            raise _malformed("stripe-signature")
        message = f"{times[0]}.".encode() + body
        valid = False
        for text in texts:
            if _HEX.fullmatch(text):
                for key in self._keys:
                    valid |= hmac.compare_digest(_hmac(key, message), bytes.fromhex(text))
        if not valid:
            raise _INVALID
        _check_age(times[0], now, self._tolerance)
        return None


def _header(fields: Fields, name: bytes) -> str:
    found = fields.get(name, [])
    if len(found) != 1:
        detail = f"the header {name.decode()} is {'missing' if not found else 'there twice'}"
        raise Refusal(400, "signature_missing", detail)
    return found[0].decode("latin-1")


def _malformed(name: str) -> Refusal:
    return Refusal(400, "signature_malformed", f"the header {name} is malformed")


def _check_age(sent: str, now: float, tolerance: float) -> None:
    """Refuse what was signed too long ago, or will be: it may be sent again by somebody else."""
    if abs(now - int(sent)) > tolerance:
        detail = f"it was signed more than {tolerance:g} seconds from now"
        raise Refusal(401, "signature_expired", detail)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, hashlib.sha256)


def _decoded(secret: str, prefix: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(prefix), validate=True)
    except (binascii.Error, ValueError):
        raise UnfitSecret(f"base64 behind {prefix}", "something else") from None


def _public_key(raw: bytes) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        expected = "the 32 bytes of an Ed25519 key behind whpk_"
        raise UnfitSecret(expected, f"{len(raw)} bytes") from None


def _verifies(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
