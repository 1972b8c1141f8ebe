"""Sealed texts: what only we can read and nobody can change, kept by somebody else.

A seal is AES-256-GCM under a key that is derived from a secret for one purpose, so a text that was
sealed for another purpose does not open.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE = 12
_TAG = 16
_SEALED = re.compile(r"[A-Za-z0-9_-]{38,5600}")


class Seal:
    """Closes and opens texts for one purpose.

    Nonces are random: one secret serves 2^32 texts of a purpose before two may share one.
    """

    def __init__(self, secret: bytes, purpose: str) -> None:
        self._purpose = f"oyez {purpose}".encode()
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=self._purpose).derive(secret)
        self._cipher = AESGCM(key)

    def close(self, content: bytes) -> str:
        """Return the content sealed: letters, digits, ``-`` and ``_``."""
        nonce = secrets.token_bytes(_NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, content, self._purpose)
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def open(self, text: str) -> bytes | None:
        """Return the content of a sealed text; None for any other text."""
        if not _SEALED.fullmatch(text):
            return None
        try:
            sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except binascii.Error:
            return None
        # The last letter may hold bits that no byte has: one content has one text.
        if base64.urlsafe_b64encode(sealed).decode().rstrip("=") != text:
            return None
        if len(sealed) < _NONCE + _TAG:
            return None
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], self._purpose)
        except InvalidTag:
            return None
