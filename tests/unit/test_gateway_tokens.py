"""Tokens of issuers over real sockets: who passes, each attack on them, and keys that change."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from test_gateway import KEY, Client, Upstream, listening, logged, refused, serving, settings
from test_gateway import Clock as WallClock

from oyez.ambient import SystemAmbient
from oyez.config import Config
from oyez.errors import ConfigurationError
from oyez.gateway import keysets, tokens
from oyez.gateway.exchange import Refusal
from oyez.gateway.keysets import PAUSE, STALE, KeySet
from oyez.gateway.tokens import KNOWN_SECONDS, Tokens

URL = "https://login.example.com/shop"
DEADLINE = 10.0

ROUTES = """
[[gateway.routes]]
path = "/mine"
service = "orders"
access = "user"
claims = ["email", "absent"]
[[gateway.routes]]
path = "/machines"
service = "orders"
access = "key"
[[gateway.routes]]
path = "/scoped"
service = "orders"
scopes = ["orders:write", "orders:read"]
[[gateway.routes]]
path = "/clerks"
service = "orders"
roles = ["clerk", "admin"]
"""


class Clock(WallClock):
    """Real time, to which a test can add some of it: of the date, and of what passes."""

    passed = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.passed


@cache
def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def public(key: Any, **more: Any) -> dict[str, Any]:
    """The key as one of a key set."""
    kinds: dict[type, Any] = {
        rsa.RSAPrivateKey: RSAAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
        ed25519.Ed25519PrivateKey: OKPAlgorithm,
    }
    kind = next(found for each, found in kinds.items() if isinstance(key, each))
    return {**kind.to_jwk(key.public_key(), as_dict=True), **more}


def claims(**changed: Any) -> dict[str, Any]:
    """The claims of a good token; None leaves one out."""
    now = int(time.time())
    found = {"iss": URL, "aud": "shop", "sub": "anna", "iat": now, "exp": now + 600, **changed}
    return {name: value for name, value in found.items() if value is not None}


def token(
    key: Any = None, algorithm: str = "RS256", kid: str | None = "one", **changed: Any
) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**changed), key or rsa_key(), algorithm=algorithm, headers=headers)


def part(content: Any) -> str:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signed(header: Any, payload: Any, sign: Callable[[bytes], bytes] | None = None) -> str:
    """A token of any header and payload; by default the RSA key signs it."""
    text = f"{part(header)}.{part(payload)}"
    if sign is None:
        algorithm = RSAAlgorithm(RSAAlgorithm.SHA256)
        return f"{text}.{part(algorithm.sign(text.encode(), rsa_key()))}"
    return f"{text}.{part(sign(text.encode()))}"


class Issuer:
    """Publishes its keys, or whatever ``answer`` sends instead."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = list(keys) or [public(rsa_key(), kid="one")]
        self.fetches = 0
        self.answer: Callable[[Any], Awaitable[None]] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.fetches += 1
        if self.answer is not None:
            await self.answer(send)
        else:
            await answering(200, json.dumps({"keys": self.keys}).encode())(send)


def answering(status: int, body: bytes, **headers: str) -> Callable[[Any], Awaitable[None]]:
    async def answer(send: Any) -> None:
        named = [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": body})

    return answer


def table(name: str, jwks: str, more: str = "", issuer: str = URL) -> str:
    lines = [f"[gateway.issuers.{name}]", f'issuer = "{issuer}"', f'jwks = "{jwks}"']
    if "audience" not in more:
        lines.append('audience = "shop"')
    return "\n".join((*lines, more, ""))


@contextlib.asynccontextmanager
async def guarded(
    folder: Path,
    upstream: Any,
    issuer: Issuer,
    more: str = "",
    clock: SystemAmbient | None = None,
    others: str = "",
) -> AsyncIterator[Client]:
    async with (
        listening(upstream) as port,
        listening(issuer) as at,
        serving(
            settings(
                folder, port, table("staff", f"http://127.0.0.1:{at}/keys", more) + others + ROUTES
            ),
            clock,
        ) as client,
    ):
        yield client


@pytest.fixture
async def upstream() -> Upstream:
    return Upstream()


def bearer(value: str) -> dict[str, str]:
    return {"authorization": f"Bearer {value}"}


async def rejected(client: Client, value: str, path: str = "/mine") -> str:
    """The reason for which a token is refused."""
    answer = refused(await client.get(path, headers=bearer(value)), 401, "invalid_token")
    challenge = answer.headers["www-authenticate"]
    detail: str = answer.json()["detail"]
    assert challenge == (
        f'Bearer realm="oyez", error="invalid_token", error_description="{detail}"'
    )
    return detail


# Who passes


async def test_users_of_an_issuer_pass(tmp_path: Path, upstream: Upstream) -> None:
    keys = [
        public(rsa_key(), kid="one"),
        public(ec_key(), kid="curve"),
        public(ed_key(), kid="edwards", alg="EdDSA", use="sig", key_ops=["verify"]),
    ]
    async with guarded(tmp_path, upstream, Issuer(*keys)) as client:
        for key, algorithm, kid in (
            (rsa_key(), "RS256", "one"),
            (rsa_key(), "PS256", "one"),
            (rsa_key(), "RS256", "one"),
            (ec_key(), "ES256", "curve"),
            (ed_key(), "EdDSA", "edwards"),
        ):
            value = token(key, algorithm, kid)
            for _ in range(2):
                answer = await client.get("/mine", headers=bearer(value))
                assert answer.status_code == 200, answer.text
                seen = upstream.seen[-1]["map"]
                assert seen[b"x-oyez-principal"] == b"staff:anna"
                assert b"authorization" not in seen
        for kind in ("at+jwt", "JWT", "application/at+jwt"):
            value = signed({"alg": "RS256", "kid": "one", "typ": kind}, claims(aud=["x", "shop"]))
            assert (await client.get("/orders", headers=bearer(value))).status_code == 200
        # A key of another algorithm does not make the only one for this algorithm ambiguous.
        value = token(ec_key(), "ES256", kid=None)
        assert (await client.get("/mine", headers=bearer(value))).status_code == 200


async def test_each_access_asks_for_its_own(tmp_path: Path, upstream: Upstream) -> None:
    user, key = bearer(token()), {"x-api-key": KEY}
    async with guarded(tmp_path, upstream, Issuer()) as client:
        await client.post("/session")
        session = {"cookie": f"oyez_session={client.cookies['oyez_session']}"}
        client.cookies.clear()
        passes = {
            "/open": [{}, user, key, session, bearer("wrong"), bearer(token(kid="unknown"))],
            "/orders": [user, key, session],
            "/mine": [user],
            "/machines": [key],
        }
        for path, allowed in passes.items():
            for sent in (user, key, session):
                status = (await client.get(path, headers=sent)).status_code
                assert status == (200 if sent in allowed else 401), (path, sent)
        for sent in passes["/open"]:
            assert (await client.get("/open", headers=sent)).status_code == 200
        assert b"x-oyez-principal" not in upstream.seen[-1]["map"]
        for path, sent in (("/mine", key), ("/mine", session), ("/machines", user)):
            answer = refused(await client.get(path, headers=sent), 401, "credentials_unfit")
            assert answer.headers["www-authenticate"] == 'Bearer realm="oyez"'
        refused(await client.get("/mine"), 401, "credentials_missing")
        both = {**user, "x-api-key": KEY}
        refused(await client.get("/orders", headers=both), 401, "key_invalid")


async def test_scopes_and_roles_are_asked_for(tmp_path: Path, upstream: Upstream) -> None:
    more = 'roles_claim = "realm_access.roles"'
    both, one = "orders:read openid orders:write", "orders:read"
    async with guarded(tmp_path, upstream, Issuer(), more) as client:

        async def status(path: str, **changed: Any) -> int:
            return (await client.get(path, headers=bearer(token(**changed)))).status_code

        assert await status("/scoped", scope=both) == 200
        assert await status("/scoped", scope=both.split()) == 200
        assert await status("/scoped", scp=both) == 403
        assert await status("/scoped", scope=f"{both}x") == 403
        assert await status("/clerks", realm_access={"roles": ["x", "admin"]}) == 200
        assert await status("/clerks", realm_access={"roles": ["admin"]}, aud="else") == 401
        others: list[Any] = [
            "clerk",
            [],
            {"roles": ["customer"]},
            {"roles": "clerks"},
            {"roles": []},
        ]
        for other in others:
            assert await status("/clerks", roles=["clerk"], realm_access=other) == 403
        for scope in (5, {"orders:read": 1}, [["orders:read"]]):
            assert await status("/scoped", scope=scope) == 401
        passed = len(upstream.seen)
        answer = await client.get("/scoped", headers=bearer(token(scope=one)))
        refused(answer, 403, "insufficient_scope")
        assert answer.headers["www-authenticate"] == (
            'Bearer realm="oyez", error="insufficient_scope", error_description="the sender lacks '
            'a scope that is asked for here", scope="orders:read orders:write"'
        )
        answer = await client.get("/clerks", headers=bearer(token()))
        refused(answer, 403, "insufficient_scope")
        assert "clerk" not in answer.text + answer.headers["www-authenticate"]
        refused(await client.get("/scoped", headers={"x-api-key": KEY}), 403, "insufficient_scope")
        assert len(upstream.seen) == passed


async def test_claims_are_found_by_their_names(tmp_path: Path, upstream: Upstream) -> None:
    more = 'scopes_claim = "scp"\nroles_claim = "https://shop.example/roles"'
    async with guarded(tmp_path, upstream, Issuer(), more) as client:
        sent = {"https://shop.example/roles": "clerk", "scp": ["orders:read", "orders:write"]}
        for path in ("/clerks", "/scoped"):
            answer = await client.get(path, headers=bearer(token(**sent)))
            assert answer.status_code == 200


# What is no valid token


def attacks() -> dict[str, str]:
    """Tokens, each with a part of the reason for which it is refused."""
    head = {"alg": "RS256", "kid": "one"}
    now = int(time.time())
    pem = rsa_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = rsa_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def by_secret(secret: bytes) -> Callable[[bytes], bytes]:
        return lambda text: hmac.digest(secret, text, "sha256")

    good = token()
    payload, signature = good.split(".")[1:]
    own = public(rsa_key(1), kid="one")
    found = {
        token(rsa_key(1)): "signature",
        token(rsa_key(1), "PS256"): "signature",
        token(ec_key(), "ES256"): "not one of its issuer",
        token(rsa_key(), "RS512"): "algorithm that is not accepted",
        f"{part(head)}.{part(claims(sub='eve'))}.{signature}": "signature",
        f"{part({**head, 'alg': 'PS256'})}.{payload}.{signature}": "signature",
        good[:-2]: "signature",
        f"{good}A": "signature",
        f"{good}=": "no signed",
        f"{part(head)}.{payload}.": "no signed",
        f".{payload}.{signature}": "no signed",
        f"{part(head)}..{signature}": "no signed",
        "..": "no signed",
        # Which key, and where it is, is not the token's to say.
        signed({**head, "jwk": own}, claims(), rsa_signature(rsa_key(1))): "signature",
        signed({**head, "jku": "http://127.0.0.1:1/"}, claims(), rsa_signature(rsa_key(1))): (
            "signature"
        ),
        signed({**head, "x5u": "http://127.0.0.1:1/"}, claims(), rsa_signature(rsa_key(1))): (
            "signature"
        ),
        token(kid="../../../../dev/null"): "not one of its issuer",
        token(kid="one' OR '1'='1"): "not one of its issuer",
        token(kid="one\x00"): "no signed",
        token(kid="x" * 257): "id of the key",
        token(kid=""): "not one of its issuer",
        signed({"alg": "RS256", "kid": ["one"]}, claims()): "id of the key",
        signed({"alg": "RS256", "kid": {"one": 1}}, claims()): "id of the key",
        token(kid=None): "not one of its issuer",
        # What asks for more than a signature.
        signed({**head, "crit": ["exp"], "exp": 1}, claims()): "asks for what is not supported",
        signed({**head, "crit": []}, claims()): "asks for what is not supported",
        signed({**head, "b64": False}, claims()): "asks for what is not supported",
        signed({**head, "cty": "JWT"}, good.encode()): "no signed",
        signed({**head, "cty": "JWT"}, claims()): "asks for what is not supported",
        signed({**head, "typ": "logout+jwt"}, claims()): "type",
        signed({**head, "typ": 5}, claims()): "type",
        # Its times.
        token(exp=now - 31): "expired",
        token(exp=None): "no end",
        token(exp="9999999999"): "no number",
        token(exp=True): "no number",
        token(nbf=now + 60): "not valid yet",
        token(iat=now + 60): "not valid yet",
        token(nbf=[1]): "no number",
        # For whom and from whom it is.
        token(aud="other"): "another audience",
        token(aud=["other", "shop2"]): "another audience",
        token(aud=[]): "another audience",
        token(aud=None): "another audience",
        signed(head, claims(aud={"shop": 1})): "another audience",
        token(iss="https://login.example.com"): "issuer of the token is not known",
        token(iss=f"{URL}/"): "issuer of the token is not known",
        token(iss=None): "issuer of the token is not known",
        signed(head, claims(iss=[URL])): "issuer of the token is not known",
        token(sub=None): "sub is missing",
        token(sub=""): "sub is missing",
        signed(head, claims(sub=7)): "sub is missing",
        token(sub="x" * 256): "sub is missing",
        token(sub="anna\r\nx-oyez-principal: eve"): "sub is missing",
        # Bytes.
        token(padding="x" * 8192): "at most 8192 bytes",
        f"{'A' * 4000}.{'A' * 4000}.{'A' * 4000}": "at most 8192 bytes",
        signed(b"[" * 3000, claims()): "no signed",
        signed(head, b'{"a":' * 500 + b"1" + b"}" * 500): "no signed",
        signed(b'{"alg":"RS256","kid":"one","alg":"RS256"}', claims()): "no signed",
        signed(head, json.dumps(claims())[:-1].encode() + b',"sub":"eve"}'): "no signed",
        signed(head, b'{"exp": NaN}'): "no signed",
        signed(head, b'{"exp": 1e999}'): "no signed",
        signed(head, b"\xff"): "no signed",
        signed(b"[]", claims()): "no signed",
        signed(head, b'"text"'): "no signed",
    }
    for spelling in ("none", "None", "NONE", "nOnE", "", None, 0):
        unsigned = {"alg": spelling, "kid": "one"}
        found[signed(unsigned, claims(), lambda text: b"")] = "no signed"
        found[signed(unsigned, claims(), lambda text: b"x")] = "algorithm that is not accepted"
        found[f"{part(unsigned)}.{payload}.{signature}"] = "algorithm that is not accepted"
    for secret in (pem, pem.strip(), der, b"", json.dumps(public(rsa_key())).encode()):
        for algorithm in ("HS256", "hs256", "RS256"):
            forged = signed({**head, "alg": algorithm}, claims(), by_secret(secret))
            found[forged] = "signature" if algorithm == "RS256" else "algorithm that is not"
    return found


def rsa_signature(key: rsa.RSAPrivateKey) -> Callable[[bytes], bytes]:
    return lambda text: RSAAlgorithm(RSAAlgorithm.SHA256).sign(text, key)


async def test_forged_and_misused_tokens_are_refused(tmp_path: Path, upstream: Upstream) -> None:
    keys = [public(rsa_key(), kid="one"), public(rsa_key(2), kid="two")]
    more = 'algorithms = ["RS256", "PS256", "ES256"]'
    async with guarded(tmp_path, upstream, Issuer(*keys), more) as client:
        for value, reason in attacks().items():
            assert reason in await rejected(client, value), value
        assert not upstream.seen
        # The clocks of an issuer and a gateway may differ.
        now = int(time.time())
        for near in (token(exp=now - 20), token(nbf=now + 20), token(iat=now + 20)):
            assert (await client.get("/mine", headers=bearer(near))).status_code == 200


async def test_what_is_no_token_stays_an_api_key(tmp_path: Path, upstream: Upstream) -> None:
    async with guarded(tmp_path, upstream, Issuer()) as client:
        assert (await client.get("/orders", headers=bearer(KEY))).status_code == 200
        for value in ("a.b", "a.b.c.d", f"{token()}.x.y", "wrong"):
            refused(await client.get("/orders", headers=bearer(value)), 401, "key_invalid")
        good = {"x-api-key": token()}
        refused(await client.get("/orders", headers=good), 401, "key_invalid")


async def test_a_token_ends_although_it_is_known(tmp_path: Path, upstream: Upstream) -> None:
    clock = Clock()
    async with guarded(tmp_path, upstream, Issuer(), clock=clock) as client:
        soon = token(exp=int(time.time()) + 10)
        assert (await client.get("/mine", headers=bearer(soon))).status_code == 200
        clock.ahead = 45
        assert await rejected(client, soon) == "the token has expired"


async def test_two_issuers_use_one_key_id(tmp_path: Path, upstream: Upstream) -> None:
    """Each is believed for its own users alone."""
    other = Issuer(public(rsa_key(1), kid="one"))
    async with listening(other) as at:
        more = table("other", f"http://127.0.0.1:{at}/keys", issuer="https://other.example.com")
        more += """
            [[gateway.routes]]
            path = "/staff"
            service = "orders"
            access = "user"
            issuers = ["other"]
        """
        async with guarded(tmp_path, upstream, Issuer(), others=more) as client:
            theirs = token(rsa_key(1), iss="https://other.example.com")
            for path in ("/mine", "/staff"):
                assert (await client.get(path, headers=bearer(theirs))).status_code == 200
                assert upstream.seen[-1]["map"][b"x-oyez-principal"] == b"other:anna"
            assert (await client.get("/mine", headers=bearer(token()))).status_code == 200
            refused(await client.get("/staff", headers=bearer(token())), 401, "credentials_unfit")
            for forged in (token(rsa_key(1)), token(iss="https://other.example.com")):
                assert "signature" in await rejected(client, forged)


async def test_a_token_is_never_logged(tmp_path: Path, upstream: Upstream) -> None:
    sent = [token(), token(rsa_key(1)), token(kid="unknown"), token(exp=1)]
    with logged() as lines:
        async with guarded(tmp_path, upstream, Issuer()) as client:
            for value in sent:
                await client.get("/mine", headers=bearer(value))
    assert [line["status"] for line in lines if line["event"] == "request"] == [200, 401, 401, 401]
    for value in sent:
        for piece in value.split("."):
            assert piece not in repr(lines)


# Keys


def keyset(folder: Path, jwks: str, ambient: SystemAmbient | None = None) -> KeySet:
    config = settings(folder, 1, table("staff", jwks))
    assert config.gateway is not None
    return KeySet(config, config.gateway.issuers["staff"], ambient or SystemAmbient())


def weak_keys() -> list[dict[str, Any]]:
    key = rsa_key()
    return [
        public(rsa_key(bits=1024), kid="weak"),
        public(key, kid="for encryption", use="enc"),
        public(key, kid="to sign", key_ops=["sign"]),
        public(key, kid="odd", key_ops="verify"),
        public(key, kid="of another algorithm", alg="RS512"),
        RSAAlgorithm.to_jwk(key, as_dict=True) | {"kid": "private", "key_ops": ["verify"]},
        public(key, kid=7),
        public(key, kid="broken", n="!"),
        public(key, kid="empty", n=""),
        public(key, kid="list", n=[1]),
        public(key, kid="even", e="AA"),
        public(ec_key(), kid="off the curve", y=public(ec_key())["x"]),
        public(ec_key(), kid="of another curve", crv="P-384"),
        {"kty": "oct", "kid": "shared", "k": part(b"x" * 32), "alg": "HS256"},
        {"kty": "oct", "kid": "disguised", "k": part(b"x" * 32), "alg": "RS256"},
        {"kty": ["RSA"], "kid": "x"},
        {},
    ]


async def test_keys_that_are_not_to_be_used_are_left_out(tmp_path: Path) -> None:
    issuer = Issuer(*weak_keys(), public(rsa_key(), kid="one"))
    issuer.keys[3:3] = ["text", 7, None, []]  # type: ignore[list-item]
    async with listening(issuer) as at:
        keys = keyset(tmp_path, f"http://127.0.0.1:{at}/")
        assert await keys.key("one", "RS256") is not None
        for each in weak_keys():
            for algorithm in ("RS256", "PS256", "ES256", "EdDSA", "HS256", "none"):
                assert await keys.key(each.get("kid") or "none", algorithm) is None


async def test_an_id_that_two_keys_have_is_ambiguous(tmp_path: Path) -> None:
    issuer = Issuer(public(rsa_key(), kid="one"), public(rsa_key(1), kid="one"))
    async with listening(issuer) as at:
        keys = keyset(tmp_path, f"http://127.0.0.1:{at}/")
        assert await keys.key("one", "RS256") is None
        assert await keys.key(None, "RS256") is None


def bombs() -> dict[str, tuple[Callable[[Any], Awaitable[None]], str]]:
    good = json.dumps({"keys": [public(rsa_key(), kid="one")]}).encode()
    many = [public(rsa_key(), kid=f"{n}") for n in range(100)]
    many.append(public(rsa_key(), kid="one"))

    async def slow(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for byte in good[:20]:
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
            await asyncio.sleep(0.05)

    async def endless(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b" " * 65536, "more_body": True})

    return {
        "large": (answering(200, good[:-1] + b" " * 262_144 + b"}"), "more than 262144 bytes"),
        "endless": (endless, "more than 262144 bytes"),
        "many": (answering(200, json.dumps({"keys": many}).encode()), "more than 100 keys"),
        "slow": (slow, "no answer within"),
        "moved": (answering(302, good, location="/elsewhere"), "it answered 302, not 200"),
        "failing": (answering(500, good), "it answered 500, not 200"),
        "encoded": (
            answering(200, gzip.compress(good), content_encoding="gzip"),
            "its answer is encoded",
        ),
        "deep": (answering(200, b'{"keys":' + b"[" * 100_000), "nested deeper than 64 levels"),
        "a page": (answering(200, b"<html>"), "is not JSON"),
        "a list": (answering(200, b"[]"), "it is no key set"),
        "no list": (answering(200, b'{"keys": {}}'), "it is no key set"),
        "empty": (answering(200, b'{"keys": []}'), "none of its keys is for RS256"),
    }


@pytest.mark.parametrize("bomb", bombs())
async def test_what_is_no_key_set_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: str
) -> None:
    monkeypatch.setattr(keysets, "_TIMEOUT", 0.3)
    clock, issuer = Clock(), Issuer()
    async with listening(issuer) as at:
        keys = keyset(tmp_path, f"http://127.0.0.1:{at}/", clock)
        issuer.answer, reason = bombs()[bomb]
        with logged() as lines, pytest.raises(Refusal) as caught:
            await keys.key("one", "RS256")
        assert (caught.value.status, caught.value.code) == (503, "issuer_unavailable")
        assert caught.value.headers == [(b"retry-after", b"10")]
        (line,) = lines
        assert (line["event"], line["issuer"]) == ("keys of an issuer not fetched", "staff")
        assert reason in line["error"]
        assert line["remedy"]
        assert issuer.fetches == 1
        # Nothing is fetched again at once, and a good answer later is taken.
        issuer.answer = None
        with pytest.raises(Refusal):
            await keys.key("one", "RS256")
        clock.passed += PAUSE
        assert await keys.key("one", "RS256") is not None
        assert issuer.fetches == 2


async def test_a_rotated_key_is_picked_up(tmp_path: Path, upstream: Upstream) -> None:
    clock, issuer = Clock(), Issuer()
    async with guarded(tmp_path, upstream, issuer, clock=clock) as client:
        known = token()
        assert (await client.get("/mine", headers=bearer(known))).status_code == 200
        issuer.keys = [public(rsa_key(1), kid="two")]
        rotated = bearer(token(rsa_key(1), kid="two"))
        clock.passed += PAUSE
        assert (await client.get("/mine", headers=rotated)).status_code == 200
        # A key that was withdrawn verifies nothing more, and soon not what is known either.
        assert "not one of its issuer" in await rejected(client, token(sub="berta"))
        clock.ahead = KNOWN_SECONDS
        assert "not one of its issuer" in await rejected(client, known)
        assert (await client.get("/mine", headers=rotated)).status_code == 200
        assert issuer.fetches == 2


async def test_keys_are_fetched_again_before_they_are_stale(
    tmp_path: Path, upstream: Upstream
) -> None:
    class Impatient(Clock):
        async def sleep(self, seconds: float) -> None:
            waited.append(seconds)
            await go_on.wait()
            go_on.clear()

    waited: list[float] = []
    go_on, clock, issuer = asyncio.Event(), Impatient(), Issuer()
    async with guarded(tmp_path, upstream, issuer, clock=clock) as client:
        for fetches in (1, 2, 3):
            async with asyncio.timeout(DEADLINE):
                while len(waited) < fetches:
                    await client.get("/livez")
            assert issuer.fetches == fetches
            clock.passed += PAUSE
            go_on.set()
    assert waited[:3] == [keysets.REFRESH] * 3


async def test_a_flood_of_unknown_keys_fetches_once(tmp_path: Path, upstream: Upstream) -> None:
    clock, issuer = Clock(), Issuer()
    async with guarded(tmp_path, upstream, issuer, clock=clock) as client:
        assert (await client.get("/mine", headers=bearer(token()))).status_code == 200
        clock.passed += PAUSE
        flood = [bearer(token(kid=f"{n}")) for n in range(50)]
        answers = await asyncio.gather(*(client.get("/mine", headers=each) for each in flood))
        assert {answer.status_code for answer in answers} == {401}
        assert issuer.fetches == 2


async def test_a_fetch_outlives_the_client_that_caused_it(tmp_path: Path) -> None:
    held, issuer = asyncio.Event(), Issuer()
    good = answering(200, json.dumps({"keys": issuer.keys}).encode())

    async def answer(send: Any) -> None:
        await held.wait()
        await good(send)

    issuer.answer = answer
    async with listening(issuer) as at:
        keys = keyset(tmp_path, f"http://127.0.0.1:{at}/")
        first = asyncio.create_task(keys.key("one", "RS256"))
        second = asyncio.create_task(keys.key("one", "RS256"))
        async with asyncio.timeout(DEADLINE):
            while not issuer.fetches:
                await asyncio.sleep(0)
        first.cancel()
        held.set()
        assert await second is not None
        assert issuer.fetches == 1


async def test_keys_hold_while_their_issuer_is_down(tmp_path: Path, upstream: Upstream) -> None:
    clock, issuer = Clock(), Issuer()
    async with listening(upstream) as port, contextlib.AsyncExitStack() as up:
        at = await up.enter_async_context(listening(issuer))
        config = settings(tmp_path, port, table("staff", f"http://127.0.0.1:{at}/") + ROUTES)
        async with serving(config, clock) as client:
            known = bearer(token())
            assert (await client.get("/mine", headers=known)).status_code == 200
            await up.aclose()
            clock.passed += PAUSE
            clock.ahead = KNOWN_SECONDS
            assert (await client.get("/mine", headers=known)).status_code == 200
            # A key that may be new can't be judged now.
            answer = await client.get("/mine", headers=bearer(token(rsa_key(1), kid="two")))
            assert refused(answer, 503, "issuer_unavailable").headers["retry-after"] == "10"
            assert "signature" in await rejected(client, token(rsa_key(1)))
            clock.passed += STALE
            assert (await client.get("/mine", headers=known)).status_code == 200
            clock.ahead += KNOWN_SECONDS
            answer = await client.get("/mine", headers=known)
            refused(answer, 503, "issuer_unavailable")
            assert (await client.get("/open", headers=known)).status_code == 200
            assert b"x-oyez-principal" not in upstream.seen[-1]["map"]


async def test_keys_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [public(rsa_key(), kid="one")]}))
    clock = Clock()
    keys = keyset(tmp_path, "keys.json", clock)
    assert await keys.key("one", "RS256") is not None
    file.write_text(json.dumps({"keys": [public(rsa_key(), kid="two")]}))
    clock.passed += PAUSE
    assert await keys.key("two", "RS256") is not None
    for text, reason in (
        ("{}", "it is no key set"),
        ('{"keys": []}', "none of its keys is for RS256, PS256, ES256, EdDSA"),
        (" " * 300_000, "at most 262144"),
        (None, "No such file"),
    ):
        file.unlink()
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigurationError) as caught:
            keyset(tmp_path, "keys.json")
        assert "gateway.issuers.staff.jwks: expected a file with a key for" in str(caught.value)
        assert reason in str(caught.value)


# Any change of a token


def with_one_issuer(folder: Path) -> Config:
    keys = [public(rsa_key(), kid="one"), public(ed_key(), kid="edwards")]
    (folder / "keys.json").write_text(json.dumps({"keys": keys}))
    return settings(folder, 1, table("staff", "keys.json"))


def test_a_changed_token_is_refused(tmp_path: Path) -> None:
    users = Tokens(with_one_issuer(tmp_path), SystemAmbient())
    goods = [token(), token(ed_key(), "EdDSA", kid="edwards")]

    @examples(max_examples=400)
    @given(st.sampled_from(goods), st.data())
    def change(good: str, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(good)))
        until = data.draw(st.integers(at, min(at + 2, len(good))))
        new = data.draw(st.text(st.characters(max_codepoint=255), max_size=2))
        changed = good[:at] + new + good[until:]
        if changed == good:
            assert runner.run(users.user(changed)).subject == "anna"
            return
        with pytest.raises(Refusal) as caught:
            runner.run(users.user(changed))
        assert caught.value.status == 401

    with asyncio.Runner() as runner:
        change()
        # A signature has spare bits at its end, which make another text of the same bytes.
        for good in goods:
            letters = f"{ascii_letters}{digits}-_"
            same = [letter for letter in letters if accepted(runner, users, good[:-1] + letter)]
            assert same == [good[-1]]


def accepted(runner: asyncio.Runner, users: Tokens, value: str) -> bool:
    try:
        return bool(runner.run(users.user(value)).subject)
    except Refusal:
        return False


def test_any_text_is_refused_as_a_token(tmp_path: Path) -> None:
    users = Tokens(with_one_issuer(tmp_path), SystemAmbient())

    @examples(max_examples=200)
    @given(st.lists(st.binary(max_size=30), max_size=4), st.text(st.characters(max_codepoint=255)))
    def read(parts: list[bytes], end: str) -> None:
        with pytest.raises(Refusal) as caught:
            runner.run(users.user(".".join(map(part, parts)) + end))
        assert caught.value.status == 401

    with asyncio.Runner() as runner:
        read()


def test_known_tokens_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MOST_KNOWN", 10)
    users = Tokens(with_one_issuer(tmp_path), SystemAmbient())
    with asyncio.Runner() as runner:
        for number in range(30):
            value = token(ed_key(), "EdDSA", kid="edwards", sub=f"user-{number}")
            assert runner.run(users.user(value)).subject == f"user-{number}"
            assert len(users._known) <= 10
