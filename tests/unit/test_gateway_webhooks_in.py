"""Webhooks of providers, over real sockets onto the embedded broker: each scheme, each attack."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_gateway import Client, Clock, serving
from test_gateway_ingest import on_the_broker, refused

from oyez.config import Config, load
from oyez.errors import ConfigurationError
from oyez.gateway import gateway
from oyez.gateway.exchange import Refusal
from oyez.gateway.ingest.signatures import GitHub, Scheme, Standard, Stripe

PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = f"whpk_{base64.b64encode(PRIVATE.public_key().public_bytes_raw()).decode()}"
STANDARD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD, NEW = "whsec_b2xkLW9sZC1vbGQtb2xkLW9sZA==", "whsec_bmV3LW5ldy1uZXctbmV3LW5ldw=="
GITHUB, STRIPE = "It's a Secret to Everybody", "whsec_of_stripe_is_no_base64"

HOOKS = """
[gateway.webhooks.svix]
scheme = "standard"
secrets = ["${OLD}", "${NEW}", "${PUBLIC}"]
type = "svix.{body:type}"
key = "data.user.id"

[gateway.webhooks.github]
scheme = "github"
secrets = "${GITHUB}"
type = "github.{header:x-github-event}"
key = "repository.full_name"
stream = "code"

[gateway.webhooks.stripe]
path = "/in/stripe"
scheme = "stripe"
secrets = ["${STRIPE}"]
type = "stripe.{body:type}"
tolerance = 60
"""
ENVIRONMENT = {"OLD": OLD, "NEW": NEW, "PUBLIC": PUBLIC, "GITHUB": GITHUB, "STRIPE": STRIPE}


def settings(folder: Path, hooks: str = HOOKS, **environment: str) -> Config:
    (folder / "oyez.toml").write_text(
        f'[system]\nname = "shop"\n[gateway]\nlisten = "127.0.0.1:0"\n{hooks}'
    )
    return load(folder / "oyez.toml", {**ENVIRONMENT, **environment})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(tmp_path: Path, clock: Clock) -> AsyncIterator[Client]:
    async with serving(settings(tmp_path), clock) as client:
        yield client


def mac(key: bytes, *parts: str | bytes) -> bytes:
    message = b"".join(each.encode() if isinstance(each, str) else each for each in parts)
    return hmac.new(key, message, hashlib.sha256).digest()


def svix(body: bytes, at: float, secret: str = NEW, delivery: str = "msg_1") -> dict[str, str]:
    sent = str(int(at))
    if secret == PUBLIC:
        signature = PRIVATE.sign(f"{delivery}.{sent}.".encode() + body)
        text = f"v1a,{base64.b64encode(signature).decode()}"
    else:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        text = f"v1,{base64.b64encode(mac(key, delivery, '.', sent, '.', body)).decode()}"
    return {"webhook-id": delivery, "webhook-timestamp": sent, "webhook-signature": text}


def github(body: bytes, at: float, secret: str = GITHUB) -> dict[str, str]:
    signature = mac(secret.encode(), body).hex()
    return {
        "x-github-delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "x-github-event": "push",
        "x-hub-signature-256": f"sha256={signature}",
    }


def stripe(body: bytes, at: float, secret: str = STRIPE) -> dict[str, str]:
    sent = str(int(at))
    signature = mac(secret.encode(), sent, ".", body).hex()
    return {"stripe-signature": f"t={sent},v1={signature},v0={'0' * 64}"}


Sign = Callable[[bytes, float], dict[str, str]]
BODIES = {
    "/webhooks/svix": {"type": "user.created", "data": {"user": {"id": 17}}},
    "/webhooks/github": {"ref": "refs/heads/main", "repository": {"full_name": "a/b"}},
    "/in/stripe": {"id": "evt_1", "object": "event", "type": "charge.succeeded"},
}
SIGN: dict[str, Sign] = {
    "/webhooks/svix": svix,
    "/webhooks/github": github,
    "/in/stripe": stripe,
}
SIGNATURE = {
    "/webhooks/svix": "webhook-signature",
    "/webhooks/github": "x-hub-signature-256",
    "/in/stripe": "stripe-signature",
}
TIMED = ["/webhooks/svix", "/in/stripe"]


def body_of(path: str) -> bytes:
    return json.dumps(BODIES[path], indent=1).encode()


async def post(
    client: Client, path: str, body: bytes, headers: dict[str, str], kind: str = "application/json"
) -> httpx.Response:
    return await client.post(path, content=body, headers={**headers, "content-type": kind})


# What passes


@pytest.mark.parametrize(
    ("path", "delivery", "type_", "key", "name", "stream"),
    [
        ("/webhooks/svix", "msg_1", "svix.user.created", "17", "svix", "gateway"),
        (
            "/webhooks/github",
            "72d3162e-cc78-11e3-81ab-4c9367dc0958",
            "github.push",
            "a/b",
            "github",
            "code",
        ),
        ("/in/stripe", "evt_1", "stripe.charge.succeeded", None, "stripe", "gateway"),
    ],
)
async def test_a_delivery_becomes_an_event(
    client: Client, clock: Clock, tmp_path: Path, path: str, delivery: str, type_: str,
    key: str | None, name: str, stream: str,
) -> None:  # fmt: skip
    body = body_of(path)
    answer = await post(client, path, body, SIGN[path](body, clock.now()))
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1})
    (record,) = await on_the_broker(tmp_path, f"shop.{stream}")
    assert (record.key, record.data) == (key, body)
    headers = record.headers
    assert headers.pop("time")
    assert headers.pop("traceparent")
    assert headers.pop("subject", None) == headers.pop("partitionkey", None) == key
    assert headers == {
        "specversion": "1.0",
        "id": delivery,
        "source": f"/shop/gateway/webhooks/{name}",
        "type": type_,
        "datacontenttype": "application/json",
        "correlationid": delivery,
        "authtype": "service_account",
        "authid": f"webhook:{name}",
    }


@pytest.mark.parametrize("secret", [OLD, NEW, PUBLIC])
async def test_secrets_and_keys_change_without_a_gap(
    client: Client, clock: Clock, secret: str
) -> None:
    body = body_of("/webhooks/svix")
    headers = svix(body, clock.now(), secret)
    assert (await post(client, "/webhooks/svix", body, headers)).status_code == 202
    others = f"v1,{'A' * 43}= v2,x {headers['webhook-signature']} v1a,{'A' * 86}=="
    headers["webhook-signature"] = others
    assert (await post(client, "/webhooks/svix", body, headers)).status_code == 202


async def test_a_repeated_delivery_has_the_same_id(
    client: Client, clock: Clock, tmp_path: Path
) -> None:
    body = body_of("/webhooks/svix")
    for seconds in (0, 100):
        clock.ahead = seconds
        answer = await post(client, "/webhooks/svix", body, svix(body, clock.now()))
        assert answer.status_code == 202
    found = await on_the_broker(tmp_path, "shop.gateway")
    assert [(each.headers["id"], each.headers["source"]) for each in found] == [
        ("msg_1", "/shop/gateway/webhooks/svix")
    ] * 2


async def test_a_delivery_without_the_key_has_none(
    client: Client, clock: Clock, tmp_path: Path
) -> None:
    body = b'{"type": "ping", "data": {"user": 1}}'
    assert (await post(client, "/webhooks/svix", body, svix(body, clock.now()))).status_code == 202
    (record,) = await on_the_broker(tmp_path, "shop.gateway")
    assert (record.key, "subject" in record.headers) == (None, False)


def test_the_vectors_of_the_specifications() -> None:
    fields = {
        b"webhook-id": [b"msg_p5jXN8AQM9LWM0D4loKWxJek"],
        b"webhook-timestamp": [b"1614265330"],
        b"webhook-signature": [b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="],
    }
    standard = Standard([STANDARD], 300)
    body = b'{"test": 2432232314}'
    assert standard.verify(fields, body, 1614265330) == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    signature = b"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    fields = {b"x-hub-signature-256": [signature], b"x-github-delivery": [b"1"]}
    assert GitHub([GITHUB]).verify(fields, b"Hello, World!", 0) == "1"


# What does not


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_not_signed_is_refused(
    client: Client, clock: Clock, tmp_path: Path, path: str
) -> None:
    body, sign, name = body_of(path), SIGN[path], SIGNATURE[path]
    good = sign(body, clock.now())
    wrong = sign(body + b" ", clock.now())
    refused(await post(client, path, body, wrong), 401, "signature_invalid")
    refused(
        await post(client, path, body.replace(b"1", b"2") + b" ", good), 401, "signature_invalid"
    )
    for missing in good:
        if missing == "x-github-event":
            continue
        headers = {each: value for each, value in good.items() if each != missing}
        answer = await post(client, path, body, headers)
        refused(answer, 400, "signature_missing")
        assert missing in answer.json()["detail"]
    for text in ("", "v1", "nonsense", "sha1=00", "t=,v1=", "t=1", "x" * 5000, "v1,*", "=,="):
        answer = await post(client, path, body, {**good, name: text})
        assert answer.status_code in (400, 401)
        assert answer.json()["code"] in ("signature_malformed", "signature_invalid")
    many = " ".join(["v1,AAAA"] * 17) + "," + ",".join(["v1=00"] * 17)
    refused(await post(client, path, body, {**good, name: many}), 400, "signature_malformed")
    assert await on_the_broker(tmp_path, "shop.gateway") == []
    assert await on_the_broker(tmp_path, "shop.code") == []


@pytest.mark.parametrize("secret", [OLD, PUBLIC])
async def test_a_signature_is_that_of_its_body(client: Client, clock: Clock, secret: str) -> None:
    body = body_of("/webhooks/svix")
    headers = svix(body + b" ", clock.now(), secret)
    refused(await post(client, "/webhooks/svix", body, headers), 401, "signature_invalid")


@pytest.mark.parametrize("path", BODIES)
async def test_a_header_that_is_there_twice_is_refused(
    client: Client, clock: Clock, path: str
) -> None:
    body = body_of(path)
    headers = [*SIGN[path](body, clock.now()).items(), ("content-type", "application/json")]
    headers.append((SIGNATURE[path], dict(headers)[SIGNATURE[path]]))
    answer = await client.post(path, content=body, headers=headers)
    refused(answer, 400, "signature_missing")


@pytest.mark.parametrize("path", TIMED)
async def test_a_signature_is_valid_for_some_time(client: Client, clock: Clock, path: str) -> None:
    body = body_of(path)
    headers = SIGN[path](body, clock.now())
    tolerance = 60 if path == "/in/stripe" else 300
    for ahead, status in [
        (tolerance - 5, 202), (tolerance + 5, 401), (5 - tolerance, 202), (-5 - tolerance, 401)
    ]:  # fmt: skip
        clock.ahead = ahead
        answer = await post(client, path, body, headers)
        assert answer.status_code == status, ahead
        if status == 401:
            refused(answer, 401, "signature_expired")


async def test_a_time_can_not_be_changed(client: Client, clock: Clock) -> None:
    body = body_of("/webhooks/svix")
    headers = svix(body, clock.now() - 1000)
    for sent in (str(int(clock.now())), "-1", "1e9", "9" * 13, "٣", "1.5"):
        headers["webhook-timestamp"] = sent.encode().decode("latin-1")
        answer = await client.post(
            "/webhooks/svix",
            content=body,
            headers=[(k.encode(), v.encode("latin-1")) for k, v in headers.items()],
        )
        assert answer.status_code in (400, 401)
        assert answer.json()["code"] in ("signature_malformed", "signature_invalid")


async def test_the_secret_of_one_provider_is_none_of_anothers(client: Client, clock: Clock) -> None:
    body = body_of("/in/stripe")
    headers = stripe(body, clock.now(), GITHUB)
    refused(await post(client, "/in/stripe", body, headers), 401, "signature_invalid")


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b'{"type": "a"}', "text/plain", 415, "not_json"),
        (b'{"type": "a"', "application/json", 400, "bad_json"),
        (b"\xff", "application/json", 400, "bad_json"),
        (b'{"type": "a", "type": "b"}', "application/json", 422, "invalid_event"),
        (b'{"type": "a", "n": NaN}', "application/json", 422, "invalid_event"),
        (b"[" * 1000, "application/json", 422, "invalid_event"),
        (b'{"type": "a b"}', "application/json", 422, "invalid_event"),
        (b'{"type": ""}', "application/json", 422, "invalid_event"),
        (b'{"type": null}', "application/json", 422, "invalid_event"),
        (b'{"type": ["a"]}', "application/json", 422, "invalid_event"),
        (b"[]", "application/json", 422, "invalid_event"),
        (b'{"type": "%s"}' % (b"a" * 101), "application/json", 422, "invalid_event"),
        (b'{"type": "a", "data": {"user": {"id": ""}}}', "application/json", 422, "invalid_event"),
        (b'{"type": "a", "data": {"user": {"id": "%s"}}}' % (b"k" * 513), "application/json", 422,
         "invalid_event"),
        (b'{"type": "a", "data": {"user": {"id": "a\\n"}}}', "application/json", 422,
         "invalid_event"),
    ],
)  # fmt: skip
async def test_bodies_that_are_signed_and_no_events(
    client: Client, clock: Clock, tmp_path: Path, body: bytes, kind: str, status: int, code: str
) -> None:
    answer = await post(client, "/webhooks/svix", body, svix(body, clock.now()), kind)
    refused(answer, status, code)
    assert await on_the_broker(tmp_path, "shop.gateway") == []


async def test_ids_of_stripe_are_in_the_body(client: Client, clock: Clock) -> None:
    for more in ("", '"id": null,', '"id": "",', '"id": {},', '"id": "a\\nb",'):
        body = f'{{{more} "type": "a"}}'.encode()
        answer = await post(client, "/in/stripe", body, stripe(body, clock.now()))
        refused(answer, 422, "invalid_event")


async def test_only_post_at_its_path(client: Client) -> None:
    refused(await client.get("/webhooks/github"), 405, "method_not_allowed")
    refused(await client.post("/webhooks/github/x"), 404, "not_found")
    refused(await client.post("/webhooks/stripe"), 404, "not_found")


SCHEMES: list[Scheme] = [
    Standard([OLD, PUBLIC], 300), GitHub([GITHUB]), Stripe([STRIPE], 300)
]  # fmt: skip
HEADERS = [
    b"webhook-id", b"webhook-timestamp", b"webhook-signature",
    b"x-github-delivery", b"x-hub-signature-256", b"stripe-signature",
]  # fmt: skip
TEXT = st.binary(max_size=60) | st.lists(
    st.sampled_from([b"v1", b"v1a", b"t", b"=", b",", b" ", b"sha256", b"0" * 64, b"17", b"YWE="])
).map(b"".join)


@given(st.dictionaries(st.sampled_from(HEADERS), st.lists(TEXT, max_size=2)), st.binary(max_size=9))
@hypothesis_settings(max_examples=500)
def test_whatever_is_no_signature_is_refused(fields: dict[bytes, list[bytes]], body: bytes) -> None:
    for scheme in SCHEMES:
        with pytest.raises(Refusal) as caught:
            scheme.verify(fields, body, 0)
        assert caught.value.status in (400, 401)


# Settings


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (('"${GITHUB}"', '"${NONE}"'), "expected the environment variable NONE"),
        (('"${GITHUB}"', '"short-secret"'), "github.secrets: expected secrets of 16 characters"),
        (('"${GITHUB}"', "17"), "github.secrets: expected a secret, or a list of secrets"),
        (('"${GITHUB}"', "[]"), "github.secrets: expected a secret, or a list of secrets"),
        (('"github.{', '"{'), "github.type: expected an event type such as"),
        (("x-github-event}", "x github event}"), "github.type: expected an event type such as"),
        (("{header:", "{env:"), "github.type: expected an event type such as"),
        (('"repository.full_name"', '"a..b"'), "github.key: expected a field such as"),
        (('scheme = "github"', 'scheme = "hub"'), "github.scheme: expected one of"),
        (('"/in/stripe"', '"/webhooks/github"'), "expected a path that nothing else uses"),
        (('"code"', '"Code"'), "github.stream: expected a name"),
    ],
)
def test_settings_that_can_not_be(tmp_path: Path, change: tuple[str, str], problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path, HOOKS.replace(*change))
    assert problem in str(caught.value)
    assert "short-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("no-prefix-but-long-enough", "expected secrets that begin with whsec_ or whpk_"),
        ("whsec_not*base64*canary", "expected base64 behind whsec_"),
        ("whsec_Y2FuYXJ5", "expected secrets of 16 characters"),
        ("whsec_Y2FuYXJ5Y2E=", "expected 16 bytes or more behind whsec_"),
        ("whpk_Y2FuYXJ5Y2E=", "expected the 32 bytes of an Ed25519 key behind whpk_"),
    ],
)
def test_secrets_that_are_of_no_use(tmp_path: Path, secret: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        gateway(settings(tmp_path, NEW=secret), Clock(), secret=b"x" * 32)
    assert problem in str(caught.value)
    assert secret not in str(caught.value)
    assert "canary" not in str(caught.value)


def test_secrets_are_not_shown_and_come_by_the_environment_too(tmp_path: Path) -> None:
    variable = "OYEZ_GATEWAY_WEBHOOKS_SVIX_SECRETS"
    config = settings(tmp_path, **{variable: f"{OLD} {NEW}"})
    assert config.gateway is not None
    assert config.gateway.webhooks["svix"].secrets == (OLD, NEW)
    for secret in (OLD, NEW, GITHUB, STRIPE):
        assert secret not in repr(config)
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path, **{variable: "a-canary"})
    assert "canary" not in str(caught.value)
