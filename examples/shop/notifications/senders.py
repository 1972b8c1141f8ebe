"""How Notifications reaches people: SMTP for e-mail, HTTP for SMS. Both are safe to repeat."""

from __future__ import annotations

import os
from email.message import EmailMessage
from typing import Protocol

import aiosmtplib
import httpx

SMTP = os.environ.get("SHOP_SMTP", "127.0.0.1:8025")
SMS = os.environ.get("SHOP_SMS", "http://127.0.0.1:8091")
DEADLINE = 10.0
"""Seconds after which sending counts as failed."""
SENDER = "Oyez Shop <orders@shop.example>"


class Mailer(Protocol):
    """Sends an e-mail; one with a known key is not delivered twice."""

    async def send(self, key: str, to: str, subject: str, text: str, tags: dict[str, str]) -> None:
        """Return when the server has taken it. Raises when it has not."""
        ...


class Texter(Protocol):
    """Sends an SMS; one with a known key is not delivered twice."""

    async def send(self, key: str, to: str, text: str) -> None:
        """Return when the provider has taken it. Raises when it has not."""
        ...


class SmtpMailer:
    """E-mail over SMTP. The key becomes the Message-ID, by which mailboxes know a repeat."""

    async def send(self, key: str, to: str, subject: str, text: str, tags: dict[str, str]) -> None:
        """See `Mailer.send`."""
        message = EmailMessage()
        message["From"] = SENDER
        message["To"] = to
        message["Subject"] = subject
        message["Message-ID"] = f"<{key}@shop.example>"
        for name, value in tags.items():
            message[name] = value
        message.set_content(text)
        host, _, port = SMTP.rpartition(":")
        await aiosmtplib.send(message, hostname=host, port=int(port), timeout=DEADLINE)


class HttpTexter:
    """SMS through a provider that speaks HTTP."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def send(self, key: str, to: str, text: str) -> None:
        """See `Texter.send`."""
        answer = await self._client.post(
            "/messages", json={"to": to, "text": text}, headers={"Idempotency-Key": key}
        )
        answer.raise_for_status()
