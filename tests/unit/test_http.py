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

from oyez.errors import StoreUnavailable
from oyez.runtime.http import with_origin


async def unreachable(_: Request) -> Response:
    raise StoreUnavailable("connection lost")


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
    functions = (unreachable, broken, fine, its_own, halfway)
    return Starlette(routes=[Route(f"/{each.__name__}", each) for each in functions])


def fastapi() -> Any:
    app = FastAPI()
    app.get("/unreachable")(unreachable)
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


async def test_every_other_answer_is_the_apps_own() -> None:
    async with client(starlette()) as http:
        assert (await http.get("/fine")).text == "fine"
        assert (await http.get("/broken")).status_code == 500
        answer = await http.get("/its_own")
        assert (answer.status_code, answer.text) == (500, "mine")
        assert (await http.get("/halfway")).status_code == 200
