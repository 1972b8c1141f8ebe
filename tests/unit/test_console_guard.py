"""The console's guard, held to every route that any screen has."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
from starlette.routing import Mount, Route
from test_console import READ, SAME_SITE, World, world  # noqa: F401

from oyez.runtime.audit import list_acts

ORIGIN = {**SAME_SITE, "Origin": "https://console"}
OPEN = {("GET", "/sign-in"), ("POST", "/sign-in"), ("GET", "/livez")}
ELSEWHERE: tuple[dict[str, str], ...] = (
    {},
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://console"},
    {"Sec-Fetch-Site": "same-site", "Origin": "https://console"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil"},
    {"Origin": "https://evil"},
    {"Origin": "null"},
)
FIELDS = {"why": "x", "act": "discard", "data": "{}", "token": "x"}


def routes(world: World) -> Iterator[tuple[str, str]]:  # noqa: F811
    """Each route of the console that is not open, with its method and an address it matches."""
    for route in world.app.routes:
        if isinstance(route, Mount):
            assert route.path == "/static"
            continue
        assert isinstance(route, Route)
        path = route.path.replace("{service}", "desk").replace("{id:int}", "1")
        path = re.sub(r"\{\w+(?::\w+)?\}", "x", path)
        for method in sorted(route.methods or ()):
            if method != "HEAD" and (method, path) not in OPEN:
                yield method, path


async def refused(answer: httpx.Response, status: int, world: World) -> None:  # noqa: F811
    """Check that this was refused, that it told nothing, and that nothing was done."""
    assert (str(answer.request.url), answer.status_code) == (str(answer.request.url), status)
    assert "bad1" not in answer.text
    assert "Discarded" not in answer.text
    assert await list_acts(world.system.processes["desk"].store) == []


async def test_no_route_without_a_session(world: World) -> None:  # noqa: F811
    found = list(routes(world))
    assert {("GET", "/"), ("GET", "/dead/desk/1"), ("POST", "/dead/desk/1/discard")} < set(found)
    for method, path in found:
        answer = await world.client.request(method, path, headers=ORIGIN, data=FIELDS)
        await refused(answer, 303 if method == "GET" else 401, world)
        if method == "GET":
            assert answer.headers["location"].startswith("/sign-in?next=%2F")
            streamed = await world.client.get(path, headers={"Accept": "text/event-stream"})
            await refused(streamed, 401, world)
    assert (await world.client.get("/static/../app.py")).status_code != 200


async def test_no_act_by_who_may_read(world: World) -> None:  # noqa: F811
    await world.sign_in(READ)
    form = {**FIELDS, "csrf": await world.csrf()}
    for method, path in routes(world):
        if method == "POST" and path != "/sign-out":
            answer = await world.client.post(path, data=form, headers=ORIGIN)
            await refused(answer, 403, world)
            assert "sign in with the operator" in answer.text


async def test_no_act_from_another_site(world: World) -> None:  # noqa: F811
    await world.sign_in()
    form = {**FIELDS, "csrf": await world.csrf()}
    for method, path in routes(world):
        if method == "POST":
            for headers in ELSEWHERE:
                await refused(await world.client.post(path, data=form, headers=headers), 403, world)


async def test_no_act_by_a_form_of_no_or_another_session(world: World) -> None:  # noqa: F811
    await world.sign_in()
    old = await world.csrf()
    await world.sign_in()
    for method, path in routes(world):
        if method == "POST":
            for csrf in ("", old, "é"):
                form = {**FIELDS, "csrf": csrf}
                await refused(await world.client.post(path, data=form, headers=ORIGIN), 403, world)


async def test_no_act_by_an_address_alone(world: World) -> None:  # noqa: F811
    """A link, an image or a prefetch can ask for nothing that changes something."""
    await world.sign_in()
    reading = {path for method, path in routes(world) if method == "GET"}
    for method, path in routes(world):
        if method == "POST" and path not in reading:
            await refused(await world.client.get(f"{path}?why=x&act=discard"), 405, world)
        for other in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = await world.client.request(other, path, headers=ORIGIN)
            await refused(answer, 405, world)
