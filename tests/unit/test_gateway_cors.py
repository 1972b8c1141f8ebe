"""The gateway and pages of other origins, by the Fetch standard, over real sockets."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from test_gateway import KEY, Client, Upstream, listening, refused, serving, settings

from oyez.errors import ConfigurationError

SHOP = "https://shop.example.com"
ADMIN = "http://localhost:5173"
CORS = f'[gateway.cors]\norigins = ["{SHOP}", "{ADMIN}"]\n'
ALLOW = "access-control-allow-"


def preflight(method: str = "GET", origin: str = SHOP, **more: str) -> dict[str, str]:
    return {"Origin": origin, "Access-Control-Request-Method": method, **more}


def open_to(answer: httpx.Response, origin: str = SHOP) -> httpx.Response:
    assert answer.headers.get_list(f"{ALLOW}origin") == [origin]
    assert "origin" in answer.headers["vary"]
    return answer


def closed(answer: httpx.Response) -> httpx.Response:
    assert f"{ALLOW}origin" not in answer.headers
    assert "origin" in answer.headers["vary"]
    return answer


class Itself(Upstream):
    """A service that lets every page in, as many do by habit."""

    async def __call__(self, scope, receive, send) -> None:
        async def sent(message) -> None:
            if message["type"] == "http.response.start":
                own = [(b"access-control-allow-origin", b"*"), (b"vary", b"accept")]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await super().__call__(scope, receive, sent)


@pytest.fixture
async def upstream() -> Upstream:
    return Itself()


@pytest.fixture
async def client(tmp_path: Path, upstream: Upstream):
    async with (
        listening(upstream) as port,
        serving(settings(tmp_path, port, CORS + "max_age = 60")) as client,
    ):
        yield client


async def test_a_configured_origin_may_read_and_no_other(client: Client) -> None:
    answer = open_to(await client.get("/open/x", headers={"Origin": SHOP}))
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"].split(", ")
    assert f"{ALLOW}credentials" not in answer.headers
    assert answer.headers.get_list("vary") == ["accept", "origin"]
    open_to(await client.get("/open/x", headers={"Origin": ADMIN}), ADMIN)
    for other in (
        "https://evil.example.com",
        f"{SHOP}.evil.com",
        "http://shop.example.com",
        f"{SHOP}:8443",
        SHOP.upper(),
        "null",
        "*",
    ):
        closed(await client.get("/open/x", headers={"Origin": other}))
    closed(await client.get("/open/x"))
    closed(await client.get("/open/x", headers=[("Origin", SHOP), ("Origin", SHOP)]))


async def test_a_page_can_read_why_it_was_refused(client: Client) -> None:
    origin = {"Origin": SHOP}
    open_to(refused(await client.get("/orders", headers=origin), 401, "credentials_missing"))
    open_to(refused(await client.get("/nowhere", headers=origin), 404, "not_found"))
    open_to(refused(await client.put("/open/x", headers=origin), 405, "method_not_allowed"))
    answer = await client.post("/open/x", headers=origin, content=b"x" * 2_000_000)
    open_to(refused(answer, 413, "body_too_large"))


async def test_a_preflight_is_answered_before_anybody_is_known(
    client: Client, upstream: Upstream
) -> None:
    asked = preflight("POST", **{"Access-Control-Request-Headers": "content-type"})
    answer = open_to(await client.options("/orders/1", headers=asked))
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers[f"{ALLOW}methods"] == "GET, HEAD, POST"
    assert "Content-Type" in answer.headers[f"{ALLOW}headers"].split(", ")
    assert answer.headers["access-control-max-age"] == "60"
    assert "access-control-request-method" in answer.headers["vary"]
    assert upstream.seen == []


async def test_a_preflight_is_for_what_there_is_alone(client: Client, upstream: Upstream) -> None:
    answer = await client.options("/orders", headers=preflight("DELETE"))
    assert refused(answer, 405, "method_not_allowed").headers["allow"] == "GET, HEAD, POST"
    refused(await client.options("/nowhere", headers=preflight()), 404, "not_found")
    asked = preflight(origin="https://evil.example.com")
    closed(refused(await client.options("/orders", headers=asked), 403, "origin_refused"))
    for plain in ({}, {"Origin": SHOP}, {"Access-Control-Request-Method": "GET"}):
        refused(await client.options("/orders", headers=plain), 405, "method_not_allowed")
    assert upstream.seen == []


async def test_methods_and_headers_are_those_of_the_settings(tmp_path: Path) -> None:
    more = CORS + 'methods = ["GET", "PUT"]\nheaders = []\nexpose = []'
    async with listening(Upstream()) as port, serving(settings(tmp_path, port, more)) as client:
        answer = await client.options("/orders", headers=preflight())
        assert answer.headers[f"{ALLOW}methods"] == "GET"
        assert f"{ALLOW}headers" not in answer.headers
        answer = await client.get("/open", headers={"Origin": SHOP})
        assert "access-control-expose-headers" not in open_to(answer).headers


async def test_every_page_may_read_what_needs_no_session(tmp_path: Path) -> None:
    more = '[gateway.cors]\norigins = ["*"]'
    async with listening(Upstream()) as port, serving(settings(tmp_path, port, more)) as client:
        answer = await client.get("/open", headers={"Origin": "https://any.example"})
        assert f"{ALLOW}credentials" not in open_to(answer, "*").headers
        asked = {"Origin": "https://any.example", "X-Api-Key": KEY}
        assert open_to(await client.get("/orders", headers=asked), "*").status_code == 200
        # Its visitor's session is not for it.
        begun = await client.post("/session", headers={"Origin": "https://any.example"})
        refused(begun, 403, "cross_origin")


async def test_pages_with_credentials_use_the_session_of_their_visitor(tmp_path: Path) -> None:
    more = CORS + "credentials = true"
    async with listening(Upstream()) as port, serving(settings(tmp_path, port, more)) as client:
        friend = {"Origin": SHOP, "Sec-Fetch-Site": "same-site"}
        begun = open_to(await client.post("/session", headers=friend))
        assert (begun.status_code, begun.headers[f"{ALLOW}credentials"]) == (204, "true")
        assert open_to(await client.post("/orders", headers=friend)).status_code == 200
        stranger = {"Origin": "https://evil.example.com", "Sec-Fetch-Site": "cross-site"}
        closed(refused(await client.post("/orders", headers=stranger), 403, "cross_origin"))
        # Without an origin it is no page of a friend, wherever it comes from.
        nobody = {"Sec-Fetch-Site": "cross-site"}
        refused(await client.post("/orders", headers=nobody), 403, "cross_origin")


async def test_without_the_setting_sessions_stay_with_their_site(tmp_path: Path) -> None:
    async with listening(Upstream()) as port, serving(settings(tmp_path, port, CORS)) as client:
        assert (await client.post("/session")).status_code == 204
        answer = await client.post("/orders", headers={"Origin": SHOP})
        open_to(refused(answer, 403, "cross_origin"))


async def test_without_the_table_nothing_is_said(tmp_path: Path) -> None:
    async with listening(Upstream()) as port, serving(settings(tmp_path, port)) as client:
        answer = await client.get("/open", headers={"Origin": SHOP})
        assert not [name for name in answer.headers if name.startswith(("access-control", "vary"))]
        refused(await client.options("/open", headers=preflight()), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "origins",
    [
        "[]",
        '"*"',
        '["*", "https://a.example"]',
        '["null"]',
        '["shop.example.com"]',
        '["https://shop.example.com/"]',
        '["https://shop.example.com/x"]',
        '["https://Shop.example.com"]',
        '["https://shop.example.com:443"]',
        '["http://shop.example.com:80"]',
        '["https://*.example.com"]',
        '["https://u@shop.example.com"]',
        '["https://shop.example.com https://b.example"]',
    ],
)
def test_what_is_no_origin_is_a_mistake_of_the_settings(tmp_path: Path, origins: str) -> None:
    with pytest.raises(ConfigurationError, match=r"gateway\.cors\.origins: expected a list of or"):
        settings(tmp_path, 1, f"[gateway.cors]\norigins = {origins}")


def test_every_page_and_credentials_is_a_mistake_of_the_settings(tmp_path: Path) -> None:
    more = '[gateway.cors]\norigins = ["*"]\ncredentials = true'
    with pytest.raises(ConfigurationError, match=r"oyez\.toml:\d+: gateway\.cors\.origins: "):
        settings(tmp_path, 1, more)
