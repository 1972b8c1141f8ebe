"""Who sends a request, from the gateway to a service and into its events; and every forgery."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from test_gateway import KEY, Client, Clock, listening, refused, serving, settings

from oyez import Context, Event, Principal, Service, Transaction, Window, caller
from oyez.config import load
from oyez.envelope import open_record
from oyez.errors import ConfigurationError, InvalidEvent, Unproven
from oyez.gateway.identity import REMEMBERED, Identity
from oyez.identity import (
    LEEWAY,
    LIFETIME,
    MAX_KEYS,
    MAX_TOKEN,
    Signer,
    key_of,
    new_key,
    opened,
    read_keys,
)
from oyez.runtime.http import with_origin
from oyez.runtime.identity import Identities, identities, keys_at, keys_in
from oyez.testing import running
from oyez.transaction import origin

ANN = Principal(
    kind="user",
    issuer="login",
    subject="ann",
    scopes=frozenset({"orders:read", "orders:place"}),
    roles=frozenset({"clerk"}),
    claims={"email": "ann@example.org", "groups": ["a", "b"]},
)
CI = Principal(kind="api_key", issuer="key", subject="ci")
VISITOR = Principal(kind="session", issuer="session", subject="0197")
PEM = new_key()
GATEWAY = Signer("shop", PEM)
PUBLIC = read_keys(GATEWAY.jwks)

Headers = list[tuple[bytes, bytes]]


def packed(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def parts(token: str) -> list[Any]:
    """The header and the claims of a token, read without looking at its signature."""
    return [json.loads(base64.urlsafe_b64decode(each + "==")) for each in token.split(".")[:2]]


# -- the token -------------------------------------------------------------------------------------


@pytest.mark.parametrize("principal", [ANN, CI, VISITOR])
def test_a_service_reads_what_the_gateway_signed(principal: Principal) -> None:
    token = GATEWAY.sign(principal, "orders", 1_000.7)
    found, until = opened(token, PUBLIC[key_of(token)], "shop", "orders", 1_000.0)
    assert found == principal
    assert until == 1_000 + LIFETIME + LEEWAY


def test_the_token_says_what_is_documented() -> None:
    head, claims = parts(GATEWAY.sign(ANN, "orders", 1_000.0))
    (kid,) = PUBLIC
    assert head == {"alg": "EdDSA", "typ": "JWT", "kid": kid}
    assert claims == {
        "iss": "/shop/gateway",
        "aud": "orders",
        "sub": "login:ann",
        "authtype": "app_user",
        "iat": 1_000,
        "exp": 1_060,
        "scopes": ["orders:place", "orders:read"],
        "roles": ["clerk"],
        "claims": {"email": "ann@example.org", "groups": ["a", "b"]},
    }
    kinds = {parts(GATEWAY.sign(each, "a", 0.0))[1]["authtype"] for each in (CI, VISITOR)}
    assert kinds == {"api_key", "unauthenticated"}


def test_a_key_is_named_by_its_thumbprint() -> None:
    (key,) = json.loads(GATEWAY.jwks)["keys"]
    named = json.dumps({n: key[n] for n in ("crv", "kty", "x")}, separators=(",", ":"))
    assert key["kid"] == packed(hashlib.sha256(named.encode()).digest())
    assert {n: key[n] for n in ("kty", "crv", "use", "alg")} == {
        "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
    }  # fmt: skip
    assert "d" not in key


@pytest.mark.parametrize(
    "principal",
    [
        Principal(kind="user", issuer="login", subject="a\r\nx-admin: 1"),
        Principal(kind="user", issuer="login", subject="a" * 512),
        Principal(kind="user", issuer="login", subject="a", claims={"all": "x" * MAX_TOKEN}),
    ],
)
def test_what_does_not_fit_into_headers_and_events_is_not_signed(principal: Principal) -> None:
    with pytest.raises(Unproven):
        GATEWAY.sign(principal, "orders", 0.0)


# -- what a service refuses ------------------------------------------------------------------------


def by_other_algorithm(head: dict[str, Any]) -> str:
    """The gateway's claims under another algorithm, as if the public key were a password."""
    claims = parts(GATEWAY.sign(ANN, "orders", NOW))[1]
    body = f"{packed({'kid': next(iter(PUBLIC)), **head})}.{packed(claims)}"
    password = PUBLIC[next(iter(PUBLIC))].public_bytes_raw()
    return f"{body}.{packed(hmac.digest(password, body.encode(), 'sha256'))}"


def tampered() -> str:
    token = GATEWAY.sign(CI, "orders", NOW)
    head, _, signature = token.split(".")
    return f"{head}.{packed({**parts(token)[1], 'sub': 'key:root'})}.{signature}"


def unsigned() -> str:
    return f"{packed({'alg': 'none'})}.{packed(parts(GATEWAY.sign(ANN, 'orders', NOW))[1])}."


def another_key(known_name: bool) -> str:
    signer = Signer("shop", new_key())
    if known_name:
        signer._kid = next(iter(PUBLIC))
    return signer.sign(ANN, "orders", NOW)


def signed(claims: dict[str, Any]) -> str:
    """Other claims by the gateway's own key."""
    head, known = parts(GATEWAY.sign(ANN, "orders", NOW))
    return jwt.encode({**known, **claims}, GATEWAY._keys[0], "EdDSA", {"kid": head["kid"]})


def nested(deep: int) -> str:
    head = b'{"alg":"EdDSA","kid":' + b"[" * deep + b"]" * deep + b"}"
    return f"{packed(head)}.{packed({})}.{packed(b'x' * 64)}"


NOW = 1_800_000_000.0
TOKEN = GATEWAY.sign(ANN, "orders", NOW).encode()


def alone(token: str | bytes) -> Headers:
    return [(b"x-oyez-identity", token if isinstance(token, bytes) else token.encode())]


FORGED: dict[str, Callable[[], Headers]] = {
    "a name alone": lambda: [(b"x-oyez-principal", b"key:ci")],
    "a name that some servers read so": lambda: [(b"x_oyez_principal", b"key:ci")],
    "such a name beside a token": lambda: [*alone(TOKEN), (b"x_oyez-principal", b"key:ci")],
    "a token under such a name": lambda: [(b"x-oyez_identity", TOKEN)],
    "an empty token": lambda: alone(b""),
    "two tokens": lambda: alone(TOKEN) * 2,
    "a token and another": lambda: [*alone(TOKEN), *alone(b"x")],
    "tokens in one header": lambda: alone(TOKEN + b", " + TOKEN),
    "another name": lambda: [*alone(TOKEN), (b"x-oyez-principal", b"key:root")],
    "two names": lambda: [
        *alone(TOKEN),
        (b"x-oyez-principal", b"login:ann"),
        (b"x-oyez-principal", b"key:root"),
    ],
    "no JWT": lambda: alone(b"key:ci"),
    "not ASCII": lambda: alone(TOKEN + b"\xff\xfe"),
    "no signature": lambda: alone(TOKEN.rpartition(b".")[0] + b"."),
    "a foreign signature": lambda: alone(TOKEN[:-8] + b"AAAAAAAA"),
    "other claims": lambda: alone(tampered()),
    "alg none": lambda: alone(unsigned()),
    "alg none, signed": lambda: alone(by_other_algorithm({"alg": "none"})),
    "alg HS256": lambda: alone(by_other_algorithm({"alg": "HS256"})),
    "alg missing": lambda: alone(by_other_algorithm({})),
    "kid missing": lambda: alone(by_other_algorithm({"alg": "EdDSA", "kid": None})),
    "kid a path": lambda: alone(by_other_algorithm({"alg": "EdDSA", "kid": "../../key"})),
    "another key": lambda: alone(another_key(known_name=False)),
    "another key of that name": lambda: alone(another_key(known_name=True)),
    "another service's": lambda: alone(GATEWAY.sign(ANN, "payments", NOW)),
    "another system's": lambda: alone(Signer("bank", PEM).sign(ANN, "orders", NOW)),
    "expired": lambda: alone(GATEWAY.sign(ANN, "orders", NOW - LIFETIME - LEEWAY - 1)),
    "of the future": lambda: alone(GATEWAY.sign(ANN, "orders", NOW + 600)),
    "letters that base64 leaves out": lambda: alone(TOKEN[:-8] + b"!!!!" + TOKEN[-8:]),
    "deeply nested": lambda: alone(nested(2_900)),
    "huge": lambda: alone(signed({"claims": {"a": "b" * MAX_TOKEN}})),
    "of a newer gateway": lambda: alone(signed({"authtype": "system"})),
    "of nobody": lambda: alone(signed({"sub": None})),
    "of a subject without an issuer": lambda: alone(signed({"sub": "ann"})),
}


class App:
    """A service's app: tells whom it was called by, and what its events would say."""

    def __init__(self) -> None:
        self.seen: list[Principal | None] = []
        self.began: list[tuple[str | None, str | None]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(caller())
        self.began.append((origin.get().authtype, origin.get().authid))
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})


class Source:
    """The gateway's keys, and how often they were asked for."""

    def __init__(self, jwks: bytes = GATEWAY.jwks) -> None:
        self.jwks = jwks
        self.asked = 0
        self.error: Exception | None = None

    async def __call__(self) -> bytes:
        self.asked += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.jwks


class Desk:
    """A service over a real socket, and the clock that it looks at."""

    def __init__(self, port: int, app: App, clock: Clock, keys: Source) -> None:
        self.app, self.clock, self.keys = app, clock, keys
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}")

    async def get(self, headers: Headers) -> httpx.Response:
        return await self._client.get("/orders", headers=headers)

    async def close(self) -> None:
        await self._client.aclose()


class Still(Clock):
    """Its clocks stand still, until they are put forward."""

    def now(self) -> float:
        return NOW + self.ahead

    def monotonic(self) -> float:
        return self.ahead


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    app, clock, keys = App(), Still(), Source()
    proven = Identities("shop", "orders", clock, keys)
    async with listening(with_origin(app, None, proven)) as port:
        desk = Desk(port, app, clock, keys)
        yield desk
        await desk.close()


def unproven(answer: httpx.Response, status: int = 401, code: str = "identity_unproven") -> None:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert set(problem) == {"type", "title", "status", "detail", "code"}


def proof(principal: Principal = ANN, at: float = NOW, signer: Signer = GATEWAY) -> Headers:
    return [
        (b"x-oyez-principal", principal.name.encode()),
        (b"x-oyez-identity", signer.sign(principal, "orders", at).encode()),
    ]


@pytest.mark.parametrize("forged", FORGED)
async def test_a_forged_identity_never_reaches_the_app(desk: Desk, forged: str) -> None:
    unproven(await desk.get(FORGED[forged]()))
    assert desk.app.seen == []


async def test_a_proven_one_is_the_caller_of_its_own_request_alone(desk: Desk) -> None:
    for _ in range(2):
        assert (await desk.get(proof())).text == "fine"
        assert (await desk.get([])).text == "fine"
    assert (await desk.get(proof(CI))).text == "fine"
    assert desk.app.seen == [ANN, None, ANN, None, CI]
    abroad = Principal(kind="user", issuer="login", subject="Jürgen 東京")
    assert (await desk.get(proof(abroad))).text == "fine"
    assert desk.app.seen.pop() == abroad
    assert desk.app.began.pop() == ("app_user", "login:Jürgen 東京")
    nobody = (None, None)
    ann = ("app_user", "login:ann")
    assert desk.app.began == [ann, nobody, ann, nobody, ("api_key", "key:ci")]


async def test_a_token_is_worth_a_minute_also_once_it_is_known(desk: Desk) -> None:
    headers = proof()
    assert (await desk.get(headers)).status_code == 200
    desk.clock.ahead = LIFETIME - 1
    assert (await desk.get(headers)).status_code == 200
    desk.clock.ahead = LIFETIME + LEEWAY + 1
    unproven(await desk.get(headers))
    assert "expired" in (await desk.get(headers)).json()["detail"]


async def test_a_service_that_knows_no_gateway_believes_nobody() -> None:
    app = App()
    async with (
        listening(with_origin(app)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        unproven(await client.get("/", headers=proof()))
        assert (await client.get("/")).text == "fine"
    assert app.seen == [None]


async def test_a_websocket_is_opened_by_who_is_proven_alone() -> None:
    app, sent = App(), []
    proven = with_origin(app, None, Identities("shop", "orders", Still(), Source()))

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def handshake(headers: Headers, **more: Any) -> list[str]:
        sent.clear()
        await proven({"type": "websocket", "headers": headers, **more}, receive, send)
        return [each["type"] for each in sent]

    assert await handshake(proof()) == ["websocket.accept"]
    assert await handshake([]) == ["websocket.accept"]
    assert app.seen == [ANN, None]
    forged = FORGED["a name alone"]()
    assert await handshake(forged) == ["websocket.close"]
    answered = ["websocket.http.response.start", "websocket.http.response.body"]
    assert await handshake(forged, extensions={"websocket.http.response": {}}) == answered
    assert sent[0]["status"] == 401
    assert app.seen == [ANN, None]


# -- the gateway's keys ----------------------------------------------------------------------------


async def test_a_new_key_is_found_and_a_removed_one_forgotten(desk: Desk) -> None:
    later = new_key()
    both, new = Signer("shop", PEM + later), Signer("shop", later)
    assert (await desk.get(proof())).status_code == 200
    desk.clock.ahead = 2.0
    desk.keys.jwks = both.jwks
    assert (await desk.get(proof(signer=new))).status_code == 200
    assert (await desk.get(proof(CI, signer=both))).status_code == 200
    assert desk.keys.asked == 2
    desk.keys.jwks = new.jwks
    desk.clock.ahead = 400.0
    unproven(await desk.get(proof(at=NOW + 400.0)))
    assert (await desk.get(proof(at=NOW + 400.0, signer=new))).status_code == 200


async def test_names_of_keys_are_no_way_to_make_it_read_them_all_the_time(desk: Desk) -> None:
    assert (await desk.get(proof())).status_code == 200
    desk.clock.ahead = 2.0
    forged = [proof(signer=Signer("shop", new_key())) for _ in range(20)]
    for answer in await asyncio.gather(*map(desk.get, forged)):
        unproven(answer)
    assert desk.keys.asked == 2
    assert (await desk.get(proof())).status_code == 200


@pytest.mark.parametrize("error", [OSError("down"), ValueError("no JWKS")])
async def test_keys_that_cannot_be_read_are_no_fault_of_the_request(
    desk: Desk, error: Exception
) -> None:
    desk.keys.error = error
    answer = await desk.get(proof())
    unproven(answer, 503, "identity_unknown")
    assert answer.headers["retry-after"] == "1"
    assert desk.app.seen == []
    desk.keys.error = None
    desk.clock.ahead = 2.0
    assert (await desk.get(proof())).status_code == 200
    # What was read once is kept, however long it can't be read again.
    desk.keys.error = error
    desk.clock.ahead = 400.0
    assert (await desk.get(proof(at=NOW + 400.0))).status_code == 200


@pytest.mark.parametrize(
    "jwks",
    [
        b"", b"[]", b"{}", b'{"keys":[{}]}', b"\xff", b"[" * 5_000,
        b'{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"AAAA"}]}',
        b'{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"%"}]}',
        b'{"keys":[{"kty":"oct","k":"AAAA","kid":"a"}]}',
        json.dumps({"keys": json.loads(GATEWAY.jwks)["keys"] * 9}).encode(),
        GATEWAY.jwks + b" " * MAX_KEYS,
    ],
)  # fmt: skip
def test_what_is_no_set_of_keys_is_refused(jwks: bytes) -> None:
    with pytest.raises(ValueError, match=r"no JWKS|more than"):
        read_keys(jwks)


async def test_keys_come_from_a_file_that_may_not_be_there_yet(tmp_path: Path) -> None:
    keys = keys_in(tmp_path / "gateway.jwks")
    assert read_keys(await keys()) == {}
    (tmp_path / "gateway.jwks").write_bytes(GATEWAY.jwks)
    assert await keys() == GATEWAY.jwks
    (tmp_path / "gateway.jwks").write_bytes(b" " * 2 * MAX_KEYS)
    with pytest.raises(ValueError, match="more than 65536 bytes"):
        read_keys(await keys())


async def test_keys_come_from_a_url() -> None:
    answers: list[tuple[int, Headers, bytes]] = [
        (200, [], GATEWAY.jwks),
        (404, [], GATEWAY.jwks),
        (302, [(b"location", b"/again")], b""),
        (200, [], b" " * 10 * MAX_KEYS),
    ]

    async def publish(scope: Any, receive: Any, send: Any) -> None:
        status, headers, body = answers.pop(0)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async with listening(publish) as port:
        keys = keys_at(f"http://127.0.0.1:{port}/.well-known/jwks.json")
        assert await keys() == GATEWAY.jwks
        while answers:
            with pytest.raises(ValueError, match=r"answers with (404|302|more than 65536 bytes)"):
                await keys()
    with pytest.raises(ValueError, match="ConnectError"):
        await keys()


# -- the gateway -----------------------------------------------------------------------------------


async def test_from_the_gateway_to_the_service(tmp_path: Path) -> None:
    """With the file of one folder, as in development."""
    app = App()

    async def lazily(scope: Any, receive: Any, send: Any) -> None:
        await service(scope, receive, send)

    async with listening(lazily) as port:
        config = settings(tmp_path, port)
        service = with_origin(app, None, identities(config, "orders", Clock()))
        async with serving(config) as client:
            token = {"authorization": f"Bearer {KEY}"}
            assert (await client.get("/orders", headers=token)).text == "fine"
            assert (await client.get("/open")).text == "fine"
            await client.post("/session")
            assert (await client.get("/orders")).text == "fine"
    key, nobody, visitor = app.seen
    assert (key, nobody) == (CI, None)
    assert visitor is not None
    assert (visitor.kind, visitor.issuer) == ("session", "session")


async def test_a_service_elsewhere_asks_the_gateway_for_its_keys(tmp_path: Path) -> None:
    app = App()

    async def lazily(scope: Any, receive: Any, send: Any) -> None:
        await service(scope, receive, send)

    async with listening(lazily) as port, serving(settings(tmp_path, port)) as client:
        url = f"http://{client.address}/.well-known/jwks.json"
        (tmp_path / "elsewhere").mkdir()
        config = settings(tmp_path / "elsewhere", port, f'jwks = "{url}"')
        service = with_origin(app, None, identities(config, "orders", Clock()))
        token = {"x-api-key": KEY}
        assert (await client.get("/orders", headers=token)).text == "fine"
        service = with_origin(app, None, identities(config, "payments", Clock()))
        unproven(await client.get("/orders", headers=token))
    assert app.seen == [CI]


def test_a_system_without_a_gateway_has_no_identities(tmp_path: Path) -> None:
    (tmp_path / "oyez.toml").write_text(
        '[system]\nname = "shop"\n[services.orders]\napp = "a:b"\nhttp = "127.0.0.1:1"\n'
    )
    assert identities(load(tmp_path / "oyez.toml", {}), "orders", Clock()) is None


@pytest.mark.parametrize("url", ["ftp://gateway/jwks", "gateway:8080", "http://u:p@gateway/jwks"])
def test_an_address_of_keys_is_plain_http(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"gateway\.jwks: expected a URL such as"):
        settings(tmp_path, 1, f'jwks = "{url}"')


@pytest.fixture
async def seen(
    tmp_path: Path,
) -> AsyncIterator[tuple[Client, list[list[tuple[bytes, bytes]]], Clock]]:
    """A gateway, and the headers that its service is sent."""
    sent: list[list[tuple[bytes, bytes]]] = []
    clock = Clock()

    async def note(scope: Any, receive: Any, send: Any) -> None:
        sent.append(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with listening(note) as port, serving(settings(tmp_path, port), clock) as client:
        yield client, sent, clock


Seen = tuple[Client, list[Headers], Clock]


def told(headers: Headers) -> list[bytes]:
    return [value for name, value in headers if name.startswith((b"x-oyez", b"x_oyez"))]


async def test_a_client_cannot_say_who_it_is(seen: Seen) -> None:
    client, sent, _ = seen
    claims = {
        "X-Oyez-Identity": TOKEN.decode(),
        "x_oyez_identity": TOKEN.decode(),
        "X-Oyez-Principal": "key:root",
    }
    await client.get("/open", headers=claims)
    assert told(sent[0]) == []
    await client.get("/orders", headers={**claims, "x-api-key": KEY})
    name, token = told(sent[1])
    assert name == b"key:ci"
    assert parts(token.decode())[1]["sub"] == "key:ci"


async def test_a_token_is_signed_anew_when_half_of_it_is_gone(seen: Seen) -> None:
    client, sent, clock = seen
    for ahead in (0.0, 0.0, LIFETIME / 2 - 5, LIFETIME / 2 + 5):
        clock.ahead = ahead
        await client.get("/orders", headers={"x-api-key": KEY})
    first, second, third, later = (told(each)[1] for each in sent)
    assert first == second == third != later
    assert parts(later.decode())[1]["exp"] - parts(first.decode())[1]["exp"] >= LIFETIME / 2


def test_what_one_may_do_now_is_not_told_by_an_old_token(tmp_path: Path) -> None:
    identity = Identity(settings(tmp_path, 1), Clock())
    before = identity._lines(ANN, "orders")
    assert identity._lines(ANN, "orders") is before
    fewer = Principal(kind="user", issuer="login", subject="ann")
    token = identity._lines(fewer, "orders").split(b"x-oyez-identity: ")[1].decode()
    assert "scopes" not in parts(token)[1]
    assert identity._lines(ANN, "payments") != before


def test_tokens_are_kept_for_so_many_principals_alone(tmp_path: Path) -> None:
    identity = Identity(settings(tmp_path, 1), Clock())
    identity._signer.sign = lambda *_: "t"  # type: ignore[method-assign]
    for number in range(REMEMBERED + 10):
        identity._lines(Principal(kind="user", issuer="a", subject=f"{number}"), "orders")
    assert len(identity._told) == REMEMBERED
    assert ("a:0", "orders") not in identity._told


def test_the_key_is_made_once_and_kept_closed(tmp_path: Path) -> None:
    config = settings(tmp_path, 1)
    folder = tmp_path / ".oyez"
    first = Identity(config, Clock())
    assert [each.name for each in folder.iterdir()] == ["gateway.key"]
    first._lines(CI, "orders")
    assert sorted(each.name for each in folder.iterdir()) == ["gateway.jwks", "gateway.key"]
    assert (folder / "gateway.key").stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in (folder / "gateway.jwks").read_bytes()
    second = Identity(config, Clock())
    assert second._signer.jwks == first._signer.jwks == (folder / "gateway.jwks").read_bytes()
    (folder / "gateway.key").chmod(0o644)
    with pytest.raises(ConfigurationError, match="run chmod 600"):
        Identity(config, Clock())


def test_of_several_keys_the_first_one_signs_and_all_are_published(tmp_path: Path) -> None:
    config = settings(tmp_path, 1)
    old = Identity(config, Clock())._signer
    path = tmp_path / ".oyez" / "gateway.key"
    path.write_bytes(path.read_bytes() + new_key())
    identity = Identity(config, Clock())
    identity._lines(CI, "orders")
    both = identity._signer
    keys = json.loads((tmp_path / ".oyez" / "gateway.jwks").read_bytes())["keys"]
    assert len(keys) == 2
    assert keys[0] in json.loads(old.jwks)["keys"]
    assert parts(both.sign(CI, "a", 0.0))[0]["kid"] == keys[0]["kid"]


RSA = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("found", [b"", b"canary", RSA, PEM + RSA, PEM * 9])
def test_a_file_of_keys_that_is_damaged_is_not_quoted(tmp_path: Path, found: bytes) -> None:
    config = settings(tmp_path, 1)
    Identity(config, Clock())
    (tmp_path / ".oyez" / "gateway.key").write_bytes(found)
    with pytest.raises(ConfigurationError, match="expected Ed25519 private keys in PEM") as caught:
        Identity(config, Clock())
    for secret in ("canary", "AAAA", PEM.decode().split("\n")[1]):
        assert secret not in str(caught.value)


async def test_the_gateway_publishes_its_keys(tmp_path: Path, seen: Seen) -> None:
    client, sent, _ = seen
    answer = await client.get("/.well-known/jwks.json")
    assert answer.content == Signer("shop", (tmp_path / ".oyez" / "gateway.key").read_bytes()).jwks
    assert answer.headers["content-type"] == "application/jwk-set+json"
    refused(await client.post("/.well-known/jwks.json"), 405, "method_not_allowed")
    assert sent == []


# -- events ----------------------------------------------------------------------------------------


class Placed(Event, type="identity.placed", key="order"):
    order: str


class Packed(Event, type="identity.packed", key="order"):
    order: str


class Later(Event, type="identity.later", key="order"):
    order: str


class Counted(Event, type="identity.counted", key="orders"):
    orders: str


def desk_service(told: list[tuple[str | None, str | None]]) -> Service:
    service = Service("orders", publishes=(Placed,))

    async def place(scope: Any, receive: Any, send: Any) -> None:
        async with service.transaction() as tx:
            tx.publish(Placed(order=scope["path"].strip("/")))
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    service.http = place

    @service.on(Placed)
    async def pack(event: Placed, tx: Transaction, context: Context) -> Packed:
        told.append((context.authtype, context.authid))
        tx.publish(Later(order=event.order), delay=60.0)
        return Packed(order=event.order)

    @service.on(Packed, batch=True)
    async def count(events: list[Packed], tx: Transaction) -> Counted:
        return Counted(orders=" ".join(sorted(each.order for each in events)))

    return service


async def test_events_say_who_began_them_whenever_and_by_whomever_they_are_announced() -> None:
    told: list[tuple[str | None, str | None]] = []
    async with running(desk_service(told)) as system:
        async with system.http("orders", ANN) as client:
            assert (await client.post("/1")).status_code == 202
        await system.settled()
        await system.advance(61.0)
        history = system.history()
    assert {each.type.partition(".")[2] for each in history} == {
        "placed", "packed", "later", "counted",
    }  # fmt: skip
    assert {(each.authtype, each.authid) for each in history} == {("app_user", "login:ann")}
    assert told == [("app_user", "login:ann")]


async def test_an_event_of_nobody_in_particular_says_nothing() -> None:
    told: list[tuple[str | None, str | None]] = []
    async with running(desk_service(told)) as system:
        async with system.http("orders") as client:
            await client.post("/1")
        await system.settled()
        assert {(each.authtype, each.authid) for each in system.history()} == {(None, None)}
        headers = {name for each in system.history() for name in each.headers()}
    assert headers.isdisjoint({"authid", "authtype"})
    assert told == [(None, None)]


async def test_what_results_from_several_people_began_with_none_of_them() -> None:
    async with running(desk_service([]), partitions=1) as system:
        system.broker.interrupt(True)
        for principal, order in ((ANN, "1"), (CI, "2")):
            async with system.http("orders", principal) as client:
                await client.post(f"/{order}")
        system.broker.interrupt(False)
        await system.settled()
        counted = [each for each in system.history() if each.type == "identity.counted"]
        packed = [each for each in system.history() if each.type == "identity.packed"]
    assert {each.authid for each in packed} == {"login:ann", "key:ci"}
    (both,) = counted
    assert json.loads(both.data) == {"orders": "1 2"}
    assert (both.authtype, both.authid) == (None, None)


class Busy(Event, type="identity.busy", key="order"):
    order: str


class Minute(Window, key="order", size=60, late=1):
    orders: int = 0

    def add(self, event: Placed) -> None:
        self.orders += 1

    def close(self) -> Busy:
        return Busy(order=self.key)


async def test_a_window_closes_in_the_name_of_nobody() -> None:
    service = desk_service([])
    service.window(Minute, Placed)
    async with running(service) as system:
        async with system.http("orders", ANN) as client:
            for _ in range(3):  # closed by an event, and by the time
                await client.post("/1")
                await system.advance(61.0)
        await system.advance(61.0)
        busy = [each for each in system.history() if each.type == "identity.busy"]
    assert len(busy) == 3
    assert {(each.authtype, each.authid) for each in busy} == {(None, None)}


async def test_a_client_of_a_test_is_whom_it_says_however_long_it_lasts() -> None:
    async with running(desk_service([])) as system, system.http("orders", CI) as client:
        await client.post("/1")
        assert caller() is None
        await system.advance(3_600.0)
        assert (await client.post("/2")).status_code == 202
        forged = {"x-oyez-principal": "key:root"}
        async with system.http("orders") as nobody:
            assert (await nobody.post("/3", headers=forged)).status_code == 401


@pytest.mark.parametrize("name", ["authid", "authtype"])
@pytest.mark.parametrize("value", ["", "a" * 513, "a\nb", "a\u200bb"])
def test_who_began_an_event_is_a_short_printable_name(name: str, value: str) -> None:
    good = {"specversion": "1.0", "id": "1", "source": "/s/a", "type": "a.b"}
    assert getattr(open_record({**good, name: "a" * 512}, b"{}"), name) == "a" * 512
    assert getattr(open_record({**good, name: "login:Jürgen"}, b"{}"), name) == "login:Jürgen"
    with pytest.raises(InvalidEvent, match=name):
        open_record({**good, name: value}, b"{}")
