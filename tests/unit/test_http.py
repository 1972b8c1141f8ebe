"""A request that fails for want of the store is answered with 503, whatever the framework."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from oyez.errors import Stale, StoreUnavailable
from oyez.freshness import stale_here
from oyez.runtime.http import with_origin


async def unreachable(_: Request) -> Response:
    raise StoreUnavailable("connection lost")


async def behind(_: Request) -> Response:
    note_stale(0.3, 1.71)
    raise Stale("orders", 0.3, 1.71)


async def as_it_is(_: Request) -> Response:
    note_stale(0.01)
    return PlainTextResponse("old", status_code=200)


def note_stale(*ages: float) -> None:
    told = stale_here.get()
    assert told is not None
    told += ages


async def broken(_: Request) -> Response:
    raise ValueError("a fault")


async def fine(_: Request) -> Response:
    return PlainTextResponse("fine")


async def its_own(_: Request) -> Response:
    return PlainTextResponse("mine", status_code=500)


async def halfway(_: Request) -> Response:
    async def body() -> Any:
        yield "a"
        raise StoreUnavailable("connection lost")

    return StreamingResponse(body())


def starlette() -> Any:
    functions = (unreachable, behind, as_it_is, broken, fine, its_own, halfway)
    return Starlette(routes=[Route(f"/{each.__name__}", each) for each in functions])


def fastapi() -> Any:
    app = FastAPI()
    app.get("/unreachable")(unreachable)
    app.get("/behind")(behind)
    return app


def client(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=with_origin(app), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://x")


@pytest.mark.parametrize("make", [starlette, fastapi])
async def test_the_store_is_out_of_reach(make: Any) -> None:
    async with client(make()) as http:
        answer = await http.get("/unreachable")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["code"] == "store_unavailable"


@pytest.mark.parametrize("make", [starlette, fastapi])
async def test_a_view_has_not_caught_up(make: Any) -> None:
    async with client(make()) as http:
        answer = await http.get("/behind")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["oyez-stale"] == "1.8"
    assert answer.json()["code"] == "stale"


async def test_an_answer_says_that_it_is_old() -> None:
    async with client(starlette()) as http:
        answer = await http.get("/as_it_is")
        assert (answer.text, answer.headers["oyez-stale"]) == ("old", "0.1")
        assert "oyez-stale" not in (await http.get("/fine")).headers


async def test_every_other_answer_is_the_apps_own() -> None:
    async with client(starlette()) as http:
        assert (await http.get("/fine")).text == "fine"
        assert (await http.get("/broken")).status_code == 500
        answer = await http.get("/its_own")
        assert (answer.status_code, answer.text) == (500, "mine")
        assert (await http.get("/halfway")).status_code == 200
