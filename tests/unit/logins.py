"""The demo's provider of logins on a socket, with a hand on what it sends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from test_gateway import listening

from outside.accounts import Client, build

Meddle = Callable[[dict[str, Any]], Any]
KEY = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)


class Provider:
    """The provider; an ASGI app.

    ``meddle`` has, by path, a function of the JSON that is answered there. ``seen`` are the paths
    that were asked for.
    """

    def __init__(self) -> None:
        self.app: Starlette | None = None
        self.issuer = ""
        self.client = Client("shop", [], None)
        self.key = KEY
        self.meddle: dict[str, Meddle] = {}
        self.seen: list[str] = []

    def open(self, issuer: str) -> None:
        """Begin to answer under this address."""
        self.issuer = issuer
        self.app = build(issuer, self.client, self.key)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.app is not None
        self.seen.append(scope["path"])
        meddle = self.meddle.get(scope["path"])
        if meddle is None:
            await self.app(scope, receive, send)
            return
        sent: list[Any] = []

        async def keep(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, keep)
        body = meddle(json.loads(b"".join(each.get("body", b"") for each in sent)))
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [pair for pair in sent[0]["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", b"%d" % len(content)))
        await send({**sent[0], "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def says(
        self, change: Callable[[dict[str, Any]], object], key: Any = None, **header: Any
    ) -> None:
        """Have the claims of ID tokens changed, and signed by the provider again, or by ``key``."""

        def resign(tokens: dict[str, Any]) -> dict[str, Any]:
            claims = jwt.decode(tokens["id_token"], self.key, algorithms=["RS256"]).claims
            change(claims)
            head = {"alg": "RS256", "kid": self.key.kid, **header}
            signed = jwt.encode(head, claims, key or self.key, algorithms=[head["alg"]])
            return {**tokens, "id_token": signed}

        self.meddle["/token"] = resign


@contextlib.asynccontextmanager
async def providing(secret: str | None = None) -> AsyncIterator[Provider]:
    """A provider on a free port; its client has a secret, or none."""
    provider = Provider()
    provider.client.secret = secret
    async with listening(provider) as port:
        provider.open(f"http://127.0.0.1:{port}")
        yield provider


async def pick(address: str, account: str) -> str:
    """Log in at the provider's page; the address that it sends the browser back to."""
    async with httpx.AsyncClient() as browser:  # another site: it has no cookie of ours
        page = await browser.get(address)
        assert page.status_code == 200, page.text
        assert f'value="{account}"' in page.text
        answer = await browser.post(address, data={"account": account})
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]


def relative(address: str, **changed: str | None) -> str:
    """The path and query of an address, with parameters changed or, for None, left out."""
    parts = urlsplit(address)
    query = {**dict(parse_qsl(parts.query)), **changed}
    return f"{parts.path}?{urlencode({k: v for k, v in query.items() if v is not None})}"
