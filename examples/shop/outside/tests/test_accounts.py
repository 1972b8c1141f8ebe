from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

BACK = "http://127.0.0.1:8080/login/callback"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode()[:43]
ASKED = {
    "response_type": "code",
    "client_id": "shop",
    "redirect_uri": BACK,
    "scope": "openid profile",
    "state": "s",
    "nonce": "n",
    "code_challenge": CHALLENGE,
    "code_challenge_method": "S256",
}


@pytest.fixture(scope="module")
def accounts(start_for_module: Any, tmp_path_factory: pytest.TempPathFactory) -> httpx.Client:
    client: httpx.Client = start_for_module("accounts", tmp_path_factory.mktemp("accounts")).http
    return client


def pick(accounts: httpx.Client, account: str = "alice", **asked: str) -> dict[str, list[str]]:
    """The parameters with which the provider sends the browser back."""
    params = {**ASKED, "nonce": account, **asked}
    answer = accounts.post("/authorize", params=params, data={"account": account})
    assert answer.status_code == 303, answer.text
    there = urlsplit(answer.headers["location"])
    assert f"{there.scheme}://{there.netloc}{there.path}" == BACK
    return parse_qs(there.query)


def redeem(accounts: httpx.Client, code: str, **changed: str) -> httpx.Response:
    form = {
        "grant_type": "authorization_code",
        "client_id": "shop",
        "code": code,
        "redirect_uri": BACK,
        "code_verifier": VERIFIER,
        **changed,
    }
    return accounts.post("/token", data=form)


def test_whoever_is_picked_is_vouched_for(accounts: httpx.Client) -> None:
    page = accounts.get("/authorize", params=ASKED)
    assert "Alice Archer" in page.text
    assert "form-action" not in page.headers["content-security-policy"]
    back = pick(accounts, "carol")
    said = accounts.get("/.well-known/openid-configuration").json()
    assert back["state"] == ["s"]
    assert back["iss"] == [said["issuer"]] == [str(accounts.base_url).rstrip("/")]
    tokens = redeem(accounts, back["code"][0]).json()
    keys = KeySet.import_key_set(accounts.get("/keys").json())
    claims = jwt.decode(tokens["id_token"], keys, algorithms=["RS256"]).claims
    assert (claims["sub"], claims["aud"], claims["nonce"]) == ("carol", ["shop"], "carol")
    assert (claims["name"], claims["roles"]) == ("Carol Clerk", ["clerk"])
    assert "email" not in claims
    assert claims["exp"] - claims["iat"] == 300


def test_a_code_works_once_and_for_who_asked_for_it(accounts: httpx.Client) -> None:
    code = pick(accounts)["code"][0]
    assert redeem(accounts, code).status_code == 200
    assert redeem(accounts, code).json()["error"] == "invalid_grant"
    for changed in ({"code_verifier": "w" * 43}, {"redirect_uri": f"{BACK}/x"}):
        code = pick(accounts)["code"][0]
        assert redeem(accounts, code, **changed).json()["error"] == "invalid_grant"
        assert redeem(accounts, code).json()["error"] == "invalid_grant"
    assert redeem(accounts, "x").json()["error"] == "invalid_grant"


def test_going_back_is_an_answer_too(accounts: httpx.Client) -> None:
    for nobody in ("", "mallory", "<b>"):
        assert pick(accounts, nobody)["error"] == ["access_denied"]


@pytest.mark.parametrize(
    "changed",
    [
        {"redirect_uri": "https://evil.example/"},
        {"client_id": "other"},
    ],
)
def test_nobody_is_sent_elsewhere(accounts: httpx.Client, changed: dict[str, str]) -> None:
    for method in ("GET", "POST"):
        answer = accounts.request(method, "/authorize", params={**ASKED, **changed})
        assert answer.status_code in (400, 401)
        assert "location" not in answer.headers


@pytest.mark.parametrize("method", ["plain", ""])
def test_a_challenge_is_required(accounts: httpx.Client, method: str) -> None:
    asked = {**ASKED, "code_challenge_method": method}
    answer = accounts.get("/authorize", params=asked)
    assert "Alice" not in answer.text
    del asked["code_challenge"], asked["code_challenge_method"]
    assert "Alice" not in accounts.get("/authorize", params=asked).text


def test_the_way_back_after_a_log_out(accounts: httpx.Client) -> None:
    home = {"client_id": "shop", "post_logout_redirect_uri": "http://127.0.0.1:8080/"}
    answer = accounts.get("/logout", params=home)
    assert answer.headers["location"] == home["post_logout_redirect_uri"]
    for wrong in ({"post_logout_redirect_uri": "https://evil.example/"}, {"client_id": "other"}):
        answer = accounts.get("/logout", params={**home, **wrong})
        assert "location" not in answer.headers


def test_its_key_outlives_it_and_is_closed_to_others(start: Any, tmp_path: Path) -> None:
    first = start("accounts", tmp_path)
    keys = first.http.get("/keys").json()
    assert "d" not in keys["keys"][0]
    first.kill()
    assert start("accounts", tmp_path).http.get("/keys").json() == keys
    assert (tmp_path / "accounts.key").stat().st_mode & 0o777 == 0o600
