"""Login at the gateway, at the demo's provider, over sockets: what passes, and every attack."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import string
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import RSAKey
from logins import KEY, Provider, pick, providing, relative
from test_gateway import Client, Clock, Upstream, listening, refused, serving, settings

from oyez.ambient import SystemAmbient
from oyez.config import ProviderSettings, load
from oyez.errors import ConfigurationError, LoginFailed
from oyez.oidc import AGAIN, FRESH, Attempt, RelyingParty, found, names
from oyez.sealing import Seal

SESSION, ATTEMPT = "oyez_session", "oyez_login"


class Clocks(Clock):
    """Both clocks, which can be put forward."""

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class World:
    """A gateway with a login, its service, its provider, and a browser."""

    def __init__(
        self, client: Client, upstream: Upstream, provider: Provider, clock: Clocks
    ) -> None:
        self.client = client
        self.upstream = upstream
        self.provider = provider
        self.clock = clock

    async def begin(self, to: str = "/orders") -> str:
        """Begin a login; the address at the provider."""
        answer = await self.client.get("/login", params={"to": to})
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    async def log_in(self, account: str = "alice", to: str = "/orders") -> httpx.Response:
        """The gateway's answer to the provider's."""
        return await self.client.get(relative(await pick(await self.begin(to), account)))

    async def principal(self) -> str | None:
        """Who the service is told that the browser is."""
        answer = await self.client.get("/orders")
        if answer.status_code == 401:
            return None
        return self.upstream.seen[-1]["map"][b"x-oyez-principal"].decode()

    async def user(self) -> Any:
        return (await self.client.get("/session")).json()["user"]


@contextlib.asynccontextmanager
async def logins(
    folder: Path, *, gateway: str = "", login: str = "", secret: str | None = None
) -> AsyncIterator[World]:
    upstream, clock = Upstream(), Clocks()
    async with listening(upstream) as port, providing(secret) as provider:
        given = "" if secret is None else f'client_secret = "{secret}"'
        table = f'[gateway.login]\nissuer = "{provider.issuer}"\nclient_id = "shop"\n{given}\n'
        config = settings(folder, port, f"{gateway}\n{table}{login}")
        async with serving(config, clock) as client:
            scheme = "https" if "tls" in gateway else "http"
            provider.client.redirects = [f"{scheme}://{client.address}/login/callback"]
            yield World(client, upstream, provider, clock)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with logins(tmp_path) as world:
        yield world


def not_logged_in(world: World, answer: httpx.Response, status: int, code: str) -> None:
    refused(answer, status, code)
    assert SESSION not in world.client.cookies


# What passes


async def test_a_login_becomes_a_session(world: World) -> None:
    address = await world.begin("/orders?page=2")
    asked = parse_qs(urlsplit(address).query)
    assert asked["response_type"] == ["code"]
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["scope"] == ["openid profile email"]
    assert len(asked["state"][0]) >= 43
    assert asked["nonce"] != asked["state"]
    back = await pick(address, "alice")
    answer = await world.client.get(relative(back))
    assert (answer.status_code, answer.headers["location"]) == (303, "/orders?page=2")
    assert answer.headers["cache-control"] == "no-store"
    kept, over = answer.headers.get_list("set-cookie")
    assert re.fullmatch(r"oyez_session=[\w-]+; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax", kept)
    assert over == "oyez_login=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"
    assert await world.principal() == "login:alice"
    assert b"cookie" not in world.upstream.seen[-1]["map"]
    assert await world.user() == {
        "name": "login:alice",
        "roles": ["customer"],
        "claims": {"name": "Alice Archer"},
    }
    assert (await world.client.post("/orders")).status_code == 200


async def test_a_client_with_a_secret_shows_it(tmp_path: Path) -> None:
    async with logins(tmp_path, secret="hush:hush") as world:
        assert (await world.log_in("bob")).status_code == 303
        assert await world.principal() == "login:bob"
        world.provider.client.secret = "another"
        not_logged_in_yet = await world.client.post("/logout")
        assert not_logged_in_yet.status_code == 200
        answer = await world.log_in("bob")
        not_logged_in(world, answer, 502, "provider_fault")
        assert "hush" not in answer.text


async def test_who_goes_back_comes_back_without_a_session(world: World) -> None:
    answer = await world.log_in("", to="/open")
    assert (answer.status_code, answer.headers["location"]) == (303, "/open")
    assert SESSION not in world.client.cookies
    assert await world.user() is None


async def test_behind_tls_cookies_are_of_this_host_alone(tmp_path: Path) -> None:
    async with logins(tmp_path, gateway="tls = true") as world:
        begun = await world.client.get("/login")
        (kept,) = begun.headers.get_list("set-cookie")
        assert kept.startswith("__Host-oyez_login=")
        assert kept.endswith("; Path=/; Max-Age=600; HttpOnly; SameSite=Lax; Secure")
        asked = parse_qs(urlsplit(begun.headers["location"]).query)
        assert asked["redirect_uri"] == [f"https://{world.client.address}/login/callback"]
        cookie = kept.partition(";")[0]
        back = await pick(begun.headers["location"], "alice")
        answer = await world.client.get(relative(back), headers={"cookie": cookie})
        assert answer.headers.get_list("set-cookie")[0].startswith("__Host-oyez_session=")
        plain = answer.headers.get_list("set-cookie")[0].partition(";")[0]
        seen = await world.client.get("/orders", headers={"cookie": f"{plain}; own=1"})
        assert seen.status_code == 200
        assert world.upstream.seen[-1]["map"][b"cookie"] == b"own=1"
        bare = plain.removeprefix("__Host-")
        answer = await world.client.get("/orders", headers={"cookie": bare})
        refused(answer, 401, "credentials_missing")


async def test_a_url_that_is_set_is_where_browsers_come_back_to(tmp_path: Path) -> None:
    async with logins(tmp_path, login='url = "https://shop.example.org"') as world:
        begun = await world.client.get("/login", headers={"host": "evil.example"})
        asked = parse_qs(urlsplit(begun.headers["location"]).query)
        assert asked["redirect_uri"] == ["https://shop.example.org/login/callback"]


# What the browser brings


async def test_an_answer_that_is_not_to_this_browser_is_refused(world: World) -> None:
    back = await pick(await world.begin(), "alice")
    for wrong in (
        relative(back, state="x" * 43),
        relative(back, state=None),
        relative(back) + "&state=x",
        "/login/callback",
        "/login/callback?",
        "/login/callback?" + "&".join(f"a{n}=1" for n in range(100)),
    ):
        answer = await world.client.get(wrong)
        code = answer.json()["code"]
        assert code in ("login_unknown", "login_malformed")
        not_logged_in(world, answer, 400, code)
        # The attempt is over with the first wrong answer: begin anew for the next.
        assert ATTEMPT not in world.client.cookies
        back = await pick(await world.begin(), "alice")
    attempt = world.client.cookies[ATTEMPT]
    world.client.cookies.clear()
    not_logged_in(world, await world.client.get(relative(back)), 400, "login_unknown")
    await world.begin()  # another browser's own attempt does not help either
    not_logged_in(world, await world.client.get(relative(back)), 400, "login_unknown")
    twice = f"{ATTEMPT}={attempt}; {ATTEMPT}={attempt}"
    world.client.cookies.clear()
    answer = await world.client.get(relative(back), headers={"cookie": twice})
    not_logged_in(world, answer, 400, "login_unknown")
    assert "/token" not in world.provider.seen


async def test_an_answer_works_once(world: World) -> None:
    back = relative(await pick(await world.begin(), "alice"))
    attempt = world.client.cookies[ATTEMPT]
    assert (await world.client.get(back)).status_code == 303
    world.client.cookies.clear()
    not_logged_in(world, await world.client.get(back), 400, "login_unknown")
    answer = await world.client.get(back, headers={"cookie": f"{ATTEMPT}={attempt}"})
    not_logged_in(world, answer, 400, "login_refused")


async def test_a_login_has_ten_minutes(world: World) -> None:
    back = relative(await pick(await world.begin(), "alice"))
    world.clock.ahead = 601
    not_logged_in(world, await world.client.get(back), 400, "login_expired")


async def test_a_code_of_somebody_else_does_not_fit(world: World) -> None:
    """An attacker's code, put into a victim's own attempt: PKCE and the nonce are of another."""
    theirs = await pick(await world.begin(), "bob")
    code = parse_qs(urlsplit(theirs).query)["code"][0]
    mine = await pick(await world.begin(), "alice")
    answer = await world.client.get(relative(mine, code=code))
    not_logged_in(world, answer, 400, "login_refused")


@pytest.mark.parametrize("issuer", [None, "https://evil.example", ""])
async def test_another_providers_answer_is_refused(world: World, issuer: str | None) -> None:
    """The mix-up of RFC 9207; also one that an attacker had denied."""
    back = await pick(await world.begin(), "alice")
    answer = await world.client.get(relative(back, iss=issuer))
    not_logged_in(world, answer, 400, "login_mixed_up")
    back = await pick(await world.begin(), "")
    answer = await world.client.get(relative(back, iss=issuer))
    not_logged_in(world, answer, 400, "login_mixed_up")
    assert "/token" not in world.provider.seen


OFF_SITE = [
    "https://evil.example",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\/evil.example",
    "/%2fevil.example",
    "/%5cevil.example",
    "/%252fevil.example",
    "/.//evil.example",
    "/orders/..//evil.example",
    "/%2e%2e//evil.example",
    "/\tevil.example",
    "/\r\nset-cookie: a=b",
    "javascript:alert(1)",
    "evil.example",
    "@evil.example",
    "/orders/\\..",
    "/é",
    "/login",
    "/login/callback?code=x",
    "/%6cogin",
    "/logout",
    "/" + "x" * 2000,
]


@pytest.mark.parametrize("to", OFF_SITE)
async def test_it_leads_to_no_other_site(world: World, to: str) -> None:
    for answer in (
        await world.client.get("/login", params={"to": to}),
        await world.client.get("/login", params=[("to", "/orders"), ("to", to)]),
        await world.client.post("/logout", params={"to": to}),
    ):
        refused(answer, 400, "bad_target")
        assert "location" not in answer.headers
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("to", ["/", "/orders", "/orders?a=1&b=//x", "/a-b_c.html#part", "/a%20b"])
async def test_it_leads_to_the_pages_of_this_site(world: World, to: str) -> None:
    assert (await world.log_in(to=to)).headers["location"] == to


async def test_it_takes_no_other_method(world: World) -> None:
    for method, path in (
        ("POST", "/login"),
        ("POST", "/login/callback"),
        ("GET", "/logout"),
        ("DELETE", "/session"),
    ):
        refused(await world.client.request(method, path), 405, "method_not_allowed")


# What the provider says


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda claims: claims.pop(name)


CLAIMS: dict[str, Callable[[dict[str, Any]], object]] = {
    "wrong nonce": lambda c: c.update(nonce="x"),
    "no nonce": _without("nonce"),
    "nonce is said to be unsupported": lambda c: c.update(nonce="x", nonce_supported=False),
    "other issuer": lambda c: c.update(iss="https://evil.example"),
    "no issuer": _without("iss"),
    "other audience": lambda c: c.update(aud=["other"]),
    "no audience": lambda c: c.update(aud=[]),
    "several audiences, no authorised party": lambda c: c.update(aud=["shop", "other"]),
    "other authorised party": lambda c: c.update(azp="other"),
    "expired": lambda c: c.update(exp=1, iat=0),
    "never expires": lambda c: c.update(exp=float("inf")),
    "no expiry": _without("exp"),
    "not yet": lambda c: c.update(nbf=c["iat"] + 3600),
    "from the future": lambda c: c.update(iat=c["iat"] + 3600),
    "no subject": _without("sub"),
    "empty subject": lambda c: c.update(sub=""),
    "a subject of two lines": lambda c: c.update(sub="alice\r\nx-oyez-principal: key:ci"),
    "a number as subject": lambda c: c.update(sub=5),
    "a long subject": lambda c: c.update(sub="x" * 256),
    "of another access token": lambda c: c.update(at_hash="x" * 22),
}


@pytest.mark.parametrize("what", CLAIMS)
async def test_an_id_token_that_is_not_for_us_is_refused(world: World, what: str) -> None:
    world.provider.says(CLAIMS[what])
    answer = await world.log_in()
    assert answer.json()["code"] in ("login_not_vouched", "provider_fault")
    not_logged_in(world, answer, 502, answer.json()["code"])
    world.provider.meddle.clear()
    assert (await world.log_in()).status_code == 303


def _unsigned(tokens: dict[str, Any]) -> dict[str, Any]:
    head = "eyJhbGciOiJub25lIn0"  # {"alg":"none"}
    return {**tokens, "id_token": f"{head}.{tokens['id_token'].split('.')[1]}."}


def _flipped(tokens: dict[str, Any]) -> dict[str, Any]:
    head, claims, signature = tokens["id_token"].split(".")
    other = "A" if claims[20] != "A" else "B"
    return {**tokens, "id_token": f"{head}.{claims[:20]}{other}{claims[21:]}.{signature}"}


TOKENS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not signed": _unsigned,
    "changed": _flipped,
    "none": lambda t: {k: v for k, v in t.items() if k != "id_token"},
    "not a text": lambda t: {**t, "id_token": 5},
    "nonsense": lambda t: {**t, "id_token": "x"},
    "dots": lambda t: {**t, "id_token": ".."},
    "huge": lambda t: {**t, "id_token": "x" * 200_000},
    "no object": lambda t: [t],
    "no JSON": lambda t: b"<html>",
    "deep": lambda t: b"[" * 100_000,
}


@pytest.mark.parametrize("what", TOKENS)
async def test_tokens_that_are_broken_are_refused(world: World, what: str) -> None:
    world.provider.meddle["/token"] = TOKENS[what]
    answer = await world.log_in()
    assert answer.json()["code"] in ("login_not_vouched", "provider_fault")
    not_logged_in(world, answer, 502, answer.json()["code"])


def _letters(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _by_public_key(tokens: dict[str, Any]) -> dict[str, Any]:
    """The oldest trick: the public key, which all know, taken for a shared secret."""
    head = _letters(json.dumps({"alg": "HS256", "kid": KEY.kid}).encode())
    text = f"{head}.{tokens['id_token'].split('.')[1]}"
    made = hmac.new(KEY.as_pem(private=False), text.encode(), hashlib.sha256).digest()
    return {**tokens, "id_token": f"{text}.{_letters(made)}"}


async def test_only_the_providers_private_key_signs(world: World) -> None:
    world.provider.says(lambda claims: None, RSAKey.generate_key(2048))  # under the same name
    not_logged_in(world, await world.log_in(), 502, "login_not_vouched")
    world.provider.meddle["/token"] = _by_public_key
    not_logged_in(world, await world.log_in(), 502, "login_not_vouched")


async def test_a_new_key_of_the_provider_is_looked_for_now_and_then(world: World) -> None:
    assert (await world.log_in()).status_code == 303
    world.provider.key = RSAKey.generate_key(2048, auto_kid=True)
    world.provider.open(world.provider.issuer)
    world.client.cookies.clear()
    not_logged_in(world, await world.log_in(), 502, "login_not_vouched")
    assert world.provider.seen.count("/keys") == 1
    world.clock.ahead = AGAIN + 1
    assert (await world.log_in()).status_code == 303
    assert world.provider.seen.count("/keys") == 2


CONFIGURATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "other issuer": lambda c: {**c, "issuer": "https://evil.example"},
    "a token endpoint for all to hear": lambda c: {**c, "token_endpoint": "http://idp.example/t"},
    "a page for all to hear": lambda c: {**c, "authorization_endpoint": "http://idp.example/"},
    "keys for all to change": lambda c: {**c, "jwks_uri": "http://idp.example/keys"},
    "a script as page": lambda c: {**c, "authorization_endpoint": "javascript:alert(1)"},
    "shared secrets": lambda c: {**c, "id_token_signing_alg_values_supported": ["HS256", "none"]},
    "no endpoint": lambda c: {"issuer": c["issuer"]},
    "no object": lambda c: [],
    "no JSON": lambda c: b"<html>",
    "too large": lambda c: {**c, "more": "x" * 200_000},
}


@pytest.mark.parametrize("what", CONFIGURATIONS)
async def test_a_provider_that_can_not_be_trusted_is_not_used(world: World, what: str) -> None:
    path = "/.well-known/openid-configuration"
    world.provider.meddle[path] = CONFIGURATIONS[what]
    answer = await world.client.get("/login")
    not_logged_in(world, answer, 502, "provider_fault")
    assert "example" not in answer.text
    for _ in range(3):  # it is not asked again at once
        await world.client.get("/login")
    assert world.provider.seen == [path]
    world.provider.meddle.clear()
    world.clock.ahead = 2
    assert (await world.log_in()).status_code == 303
    world.clock.ahead = 10 + FRESH
    await world.begin()
    assert world.provider.seen.count(path) == 3


async def test_a_provider_that_is_away_is_no_fault_of_the_gateway(tmp_path: Path) -> None:
    upstream = Upstream()
    async with listening(upstream) as port:
        table = '[gateway.login]\nissuer = "http://127.0.0.1:9"\nclient_id = "shop"'
        async with serving(settings(tmp_path, port, table)) as client:
            refused(await client.get("/login"), 502, "provider_unreachable")
            assert (await client.post("/session")).status_code == 204
            assert (await client.get("/orders")).status_code == 200
            left = await client.post("/logout")
            assert (left.status_code, left.headers["location"]) == (303, "/")


# Sessions


async def test_a_login_begins_a_session_of_its_own(world: World) -> None:
    """A session that somebody planted, or that was before, is not the one of the user."""
    await world.client.post("/session")
    visitor = await world.principal()
    planted = world.client.cookies[SESSION]
    await world.log_in()
    first = world.client.cookies[SESSION]
    assert first != planted
    assert await world.principal() == "login:alice"
    await world.log_in()
    second = world.client.cookies[SESSION]
    assert second != first
    world.client.cookies.clear()
    answer = await world.client.get("/orders", headers={"cookie": f"{SESSION}={first}"})
    refused(answer, 401, "session_invalid")
    answer = await world.client.get("/orders", headers={"cookie": f"{SESSION}={planted}"})
    assert answer.status_code == 200  # still a visitor's, and nobody else's
    assert world.upstream.seen[-1]["map"][b"x-oyez-principal"].decode() == visitor


async def test_a_session_slides_up_to_its_end(tmp_path: Path) -> None:
    login = "session_lifetime = 100\nidle_timeout = 60"
    async with logins(tmp_path, login=login) as world:
        await world.log_in()
        world.clock.ahead = 50
        renewed = await world.client.post("/session")
        age = re.search(r"Max-Age=(\d+); HttpOnly; SameSite=Lax", renewed.headers["set-cookie"])
        assert age
        assert 1 <= int(age[1]) <= 50  # no longer the whole idle time
        world.clock.ahead = 99
        assert await world.principal() == "login:alice"
        await world.client.post("/session")
        world.clock.ahead = 101
        refused(await world.client.get("/orders"), 401, "session_expired")
        assert await world.user() is None
        await world.client.post("/session")
        assert (await world.principal() or "").startswith("session:")


async def test_a_session_ends_when_nobody_uses_it(tmp_path: Path) -> None:
    async with logins(tmp_path, login="idle_timeout = 60") as world:
        await world.log_in()
        token = world.client.cookies[SESSION]
        world.clock.ahead = 61
        answer = await world.client.get("/orders", headers={"cookie": f"{SESSION}={token}"})
        refused(answer, 401, "session_expired")


async def test_a_log_out_ends_the_session_here_and_there(world: World) -> None:
    await world.log_in()
    token = world.client.cookies[SESSION]
    answer = await world.client.post("/logout", headers={"sec-fetch-site": "same-origin"})
    assert answer.headers["set-cookie"].startswith("oyez_session=; Path=/; Max-Age=0")
    (farewell,) = re.findall(r'content="0; url=([^"]+)"', answer.text)
    farewell = farewell.replace("&amp;", "&")
    assert farewell.startswith(f"{world.provider.issuer}/logout?client_id=shop&post_logout")
    async with httpx.AsyncClient() as browser:
        back = await browser.get(farewell)
    assert back.headers["location"] == f"http://{world.client.address}/"
    assert await world.user() is None
    copied = await world.client.get("/orders", headers={"cookie": f"{SESSION}={token}"})
    refused(copied, 401, "session_invalid")
    assert (await world.client.post("/logout")).status_code == 200  # twice is no harm


async def test_no_other_site_logs_anybody_out(world: World) -> None:
    await world.log_in()
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "null", "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        refused(await world.client.post("/logout", headers=headers), 403, "cross_origin")
        refused(await world.client.post("/orders", headers=headers), 403, "cross_origin")
    assert await world.principal() == "login:alice"
    hidden = {"origin": "null", "sec-fetch-site": "same-origin"}  # a form without a referrer
    assert (await world.client.post("/logout", headers=hidden)).status_code == 200


async def test_a_cookie_that_was_not_made_here_is_refused(world: World) -> None:
    await world.log_in()
    token = world.client.cookies[SESSION]
    world.client.cookies.clear()
    secret = b"x" * 32
    other = Seal(secret, "session of a user").close(b"x" * 100)
    last = "A" if token[-1] != "A" else "B"
    for forged in (
        token[:-1],
        token[:-1] + last,
        token + "A",
        token + "=",
        token.swapcase(),
        other,
        "x" * 3000,
        "",
    ):
        answer = await world.client.get("/orders", headers={"cookie": f"{SESSION}={forged}"})
        refused(answer, 401, "session_invalid")
    twice = f"{SESSION}={token}; {SESSION}={token}"
    answer = await world.client.get("/orders", headers={"cookie": twice})
    refused(answer, 401, "session_invalid")
    attempt = (await world.client.get("/login")).cookies[ATTEMPT]  # sealed for another purpose
    answer = await world.client.get("/orders", headers={"cookie": f"{SESSION}={attempt}"})
    refused(answer, 401, "session_invalid")


async def test_a_person_who_does_not_fit_a_cookie_is_told_so(world: World) -> None:
    world.provider.says(lambda claims: claims.update(roles=[f"role-{n}" for n in range(1000)]))
    answer = await world.log_in()
    not_logged_in(world, answer, 500, "session_too_large")
    assert "gateway.login.claims" in answer.json()["detail"]


async def test_any_replica_knows_the_session(world: World, tmp_path: Path) -> None:
    await world.log_in()
    config = load(tmp_path / "oyez.toml", {})
    async with serving(config, world.clock) as other:
        other.cookies = world.client.cookies
        assert (await other.get("/orders")).status_code == 200
        assert world.upstream.seen[-1]["map"][b"x-oyez-principal"] == b"login:alice"


# Its parts


@given(
    st.binary(max_size=200), st.integers(0, 10_000), st.sampled_from("AZaz09-_=.!é"), st.booleans()
)
def test_no_changed_text_opens(content: bytes, place: int, letter: str, insert: bool) -> None:
    seal = Seal(b"s" * 32, "test")
    text = seal.close(content)
    assert seal.open(text) == content
    assert seal.close(content) != text
    at = place % len(text)
    changed = text[:at] + letter + text[at + (not insert) :]
    if changed != text:
        assert seal.open(changed) is None
    assert seal.open(text[:at]) is None
    assert Seal(b"t" * 32, "test").open(text) is None
    assert Seal(b"s" * 32, "other").open(text) is None


def test_a_content_has_one_text() -> None:
    """Also where the last letter holds bits that no byte has."""
    seal = Seal(b"s" * 32, "test")
    for length in range(3):
        text = seal.close(b"x" * length)
        opened = [last for last in string.ascii_letters + string.digits + "-_"
                  if seal.open(text[:-1] + last) is not None]  # fmt: skip
        assert opened == [text[-1]]


@given(st.text())
def test_no_other_text_opens(text: str) -> None:
    assert Seal(b"s" * 32, "test").open(text) is None


PROVIDER = ProviderSettings(issuer="https://idp.example", client_id="shop")
NEVER = Attempt("state", "nonce", "verifier", "https://shop.example/", "/", 2.0**40)


@given(st.text() | st.from_regex(r"(code|state|iss|error)=[a-z%&=;]*(&state=state)?"))
async def test_no_answer_breaks_the_reading_of_it(query: str) -> None:
    party = RelyingParty(PROVIDER, SystemAmbient())
    if "state=state" in query:
        query = query.replace("state=state", "state=other")
    with pytest.raises(LoginFailed):
        await party.finish(NEVER, query)


def test_claims_are_found_and_read() -> None:
    claims = {"a": {"b": ["x", 5, "y"]}, "a.b": "one two", "n": 5, "e": ""}
    assert names(found(claims, "a.b")) == ["one two"]
    del claims["a.b"]
    assert names(found(claims, "a.b")) == ["x", "y"]
    for name in ("a.c", "n.b", "n", "e", "", "a.b.c"):
        assert names(found(claims, name)) == []


# Settings


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('issuer = "http://idp.example"', "issuer: expected a URL https"),
        ('issuer = "https://me@idp.example"', "issuer: expected a URL https"),
        ('issuer = "https://idp.example?x"', "issuer: expected a URL https"),
        ('issuer = "https://idp.example#x"', "issuer: expected a URL https"),
        ('issuer = "idp.example"', "issuer: expected a URL https"),
        ('url = "https://shop.example/path"', "url: expected a URL https"),
        ('scopes = ["profile"]', 'scopes: expected a list with "openid", found profile'),
        ('scopes = ["open id"]', "scopes: expected a list of scopes"),
        ('name = "session"', "name: expected a name that the gateway doesn't use"),
        ("client_secret = 4711", "client_secret: expected the secret of this client, found so"),
        ("idle_timeout = 0", "idle_timeout: expected a number of seconds above 0"),
        ('secret = "x"', "secret: expected one of issuer"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, line: str, what: str) -> None:
    given = {"issuer": '"https://idp.example"', "client_id": '"shop"'}
    given.pop(line.partition(" ")[0], None)
    lines = [line, *(f"{key} = {value}" for key, value in given.items())]
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path, 1, "[gateway.login]\n" + "\n".join(lines))
    assert f"gateway.login.{what}" in str(caught.value)
    assert "4711" not in str(caught.value)


def test_a_name_stands_for_one_issuer(tmp_path: Path) -> None:
    """Else a subject of one would be taken for the same subject of another."""
    table = '[gateway.login]\nissuer = "https://idp.example"\nclient_id = "shop"\nname = "staff"\n'
    tokens = '[gateway.issuers.staff]\naudience = "shop"\njwks = "https://idp.example/keys"\n'
    route = '[[gateway.routes]]\npath = "/a"\nservice = "orders"\naccess = "user"\n'
    route += 'issuers = ["staff"]\n'
    settings(tmp_path, 1, f'{table}{tokens}issuer = "https://idp.example"\n{route}')
    settings(tmp_path, 1, f"{table}{route}")
    with pytest.raises(
        ConfigurationError, match=r"gateway\.login\.name: expected a name of its own"
    ):
        settings(tmp_path, 1, f'{table}{tokens}issuer = "https://other.example"\n')


def test_its_paths_are_its_own(tmp_path: Path) -> None:
    table = '[gateway.login]\nissuer = "https://idp.example"\nclient_id = "shop"\n'
    route = '[[gateway.routes]]\npath = "/login"\nservice = "orders"\n'
    settings(tmp_path, 1, route)
    with pytest.raises(ConfigurationError, match="expected a path that the gateway doesn't use"):
        settings(tmp_path, 1, table + route)


def test_the_secret_is_never_shown(tmp_path: Path) -> None:
    settings(tmp_path, 1, '[gateway.login]\nissuer = "https://idp.example"\nclient_id = "shop"')
    environ = {"OYEZ_GATEWAY_LOGIN_CLIENT_SECRET": "canary"}
    config = load(tmp_path / "oyez.toml", environ)
    assert config.gateway is not None
    assert config.gateway.login is not None
    assert config.gateway.login.client_secret is not None
    assert config.gateway.login.client_secret.text == "canary"
    assert "canary" not in f"{config} {config!r} {config.gateway.login.client_secret}"
