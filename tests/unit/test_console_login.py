"""Sign-in to the console at the demo's provider, by roles."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from logins import Provider, pick, providing, relative
from test_console import TOKEN, project

from oyez.config import load
from oyez.console.access import Access
from oyez.console.app import console
from oyez.console.login import Login
from oyez.console.system import System
from oyez.errors import ConfigurationError

HERE = "https://console"
COOKIE, ATTEMPT = "__Host-oyez-till", "__Host-oyez-till-login"


class Desk:
    """A console without services, its provider, and a browser."""

    def __init__(self, client: httpx.AsyncClient, provider: Provider) -> None:
        self.client = client
        self.provider = provider

    async def begin(self, wanted: str = "/dead") -> str:
        answer = await self.client.get("/sign-in/provider", params={"next": wanted})
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    async def sign_in(self, account: str, wanted: str = "/dead") -> httpx.Response:
        return await self.client.get(relative(await pick(await self.begin(wanted), account)))


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with providing() as provider:
        found = project(tmp_path)
        with (tmp_path / "oyez.toml").open("a") as file:
            file.write(
                f'\n[console.login]\nissuer = "{provider.issuer}"\nclient_id = "shop"\n'
                f'url = "{HERE}"\n[console.login.roles]\nread = ["customer"]\noperate = ["clerk"]\n'
            )
        settings = load(tmp_path, {}).console
        assert settings is not None
        assert settings.login is not None
        provider.client.redirects = [f"{HERE}/sign-in/callback"]
        access = Access(found.ambient, name="till", token=TOKEN, secure=True)
        login = Login(settings.login, found.ambient, name="till", secure=True)
        asks = System(found)
        app = console(asks, access, found.ambient, login)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url=HERE
        ) as client:
            yield Desk(client, provider)
        await asks.close()


async def test_a_clerk_may_operate(desk: Desk) -> None:
    page = await desk.client.get("/sign-in?next=/dead")
    assert 'href="/sign-in/provider?next=/dead"' in page.text
    answer = await desk.sign_in("carol")
    assert answer.status_code == 200
    assert 'content="0; url=/dead"' in answer.text
    session, gone = sorted(answer.headers.get_list("set-cookie"), key=len, reverse=True)
    assert session.startswith(f"{COOKIE}=")
    assert "SameSite=strict" in session
    assert gone.startswith(f"{ATTEMPT}=")
    dead = await desk.client.get("/dead")
    assert dead.status_code == 200
    assert 'title="Signed in as carol@example.org"' in dead.text
    csrf = re.search(r'name="csrf" value="([^"]+)"', dead.text)
    assert csrf
    form = {"csrf": csrf[1], "why": "x", "act": "discard"}
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": HERE}
    acted = await desk.client.post("/dead/none/1/discard", data=form, headers=headers)
    assert acted.status_code == 404  # it was let through, and there is no such service


async def test_a_customer_may_only_read(desk: Desk) -> None:
    await desk.sign_in("alice")
    dead = await desk.client.get("/dead")
    assert dead.status_code == 200
    csrf = re.search(r'name="csrf" value="([^"]+)"', dead.text)
    assert csrf
    form = {"csrf": csrf[1], "why": "x", "act": "discard"}
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": HERE}
    acted = await desk.client.post("/dead/none/1/discard", data=form, headers=headers)
    assert acted.status_code == 403


@pytest.mark.parametrize("roles", [[], ["Clerk"], "clerkish", None, {"clerk": 1}, [["clerk"]]])
async def test_who_has_no_role_stays_outside(desk: Desk, roles: object) -> None:
    desk.provider.says(lambda claims: claims.update(roles=roles))
    answer = await desk.sign_in("carol")
    assert answer.status_code == 403
    assert "none of your roles lets you in here" in answer.text
    assert COOKIE not in desk.client.cookies
    assert (await desk.client.get("/dead")).status_code == 303


async def test_one_role_may_be_a_text(desk: Desk) -> None:
    desk.provider.says(lambda claims: claims.update(roles="clerk"))
    assert (await desk.sign_in("alice")).status_code == 200


async def test_a_name_that_nobody_can_read_is_not_in_the_audit(desk: Desk) -> None:
    desk.provider.says(lambda claims: claims.update(email="carol\u202e"))
    await desk.sign_in("carol")
    assert 'title="Signed in as carol"' in (await desk.client.get("/dead")).text


async def test_an_answer_that_is_not_to_this_browser_is_refused(desk: Desk) -> None:
    back = await pick(await desk.begin(), "carol")
    attempt = desk.client.cookies[ATTEMPT]
    assert (await desk.client.get(relative(back, state="x"))).status_code == 403
    desk.client.cookies.clear()
    assert (await desk.client.get(relative(back))).status_code == 403
    headers = {"cookie": f"{ATTEMPT}={attempt[:-1]}"}
    assert (await desk.client.get(relative(back), headers=headers)).status_code == 403
    assert "/token" not in desk.provider.seen
    went_back = await desk.sign_in("")
    assert went_back.status_code == 403
    assert "access_denied" in went_back.text
    assert COOKIE not in desk.client.cookies


@pytest.mark.parametrize("wanted", ["//evil.example", "https://evil.example", "/\\evil.example"])
async def test_it_leads_to_no_other_site(desk: Desk, wanted: str) -> None:
    answer = await desk.sign_in("carol", wanted)
    assert 'content="0; url=/"' in answer.text
    assert "evil" not in answer.text


async def test_a_provider_at_fault_is_told_of(desk: Desk) -> None:
    desk.provider.meddle["/.well-known/openid-configuration"] = lambda _: []
    answer = await desk.client.get("/sign-in/provider")
    assert answer.status_code == 403
    assert "the provider of logins is at fault" in answer.text
    assert "Token" in answer.text  # the way by token is still open


async def test_the_address_is_what_browsers_say_if_none_is_set(tmp_path: Path) -> None:
    async with providing() as provider:
        found = project(tmp_path)
        with (tmp_path / "oyez.toml").open("a") as file:
            file.write(
                f'\n[console.login]\nissuer = "{provider.issuer}"\nclient_id = "shop"\n'
                'roles = {operate = ["clerk"]}\n'
            )
        settings = load(tmp_path, {}).console
        assert settings is not None
        assert settings.login is not None
        access = Access(found.ambient, name="till", token=TOKEN)
        login = Login(settings.login, found.ambient, name="till")
        app = console(System(found), access, found.ambient, login)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://desk:81") as client:
            answer = await client.get("/sign-in/provider")
            asked = parse_qs(urlsplit(answer.headers["location"]).query)
            assert asked["redirect_uri"] == ["http://desk:81/sign-in/callback"]
            wrong = await client.get("/sign-in/provider", headers={"host": "a/b"})
            assert wrong.status_code == 403


def test_a_login_without_roles_is_a_mistake(tmp_path: Path) -> None:
    project(tmp_path)
    text = (tmp_path / "oyez.toml").read_text()
    login = '\n[console.login]\nissuer = "https://idp.example"\nclient_id = "shop"\n'
    for roles in ("", "[console.login.roles]\n"):
        (tmp_path / "oyez.toml").write_text(text + login + roles)
        with pytest.raises(ConfigurationError, match=r"console\.login\.roles: expected"):
            load(tmp_path, {})
