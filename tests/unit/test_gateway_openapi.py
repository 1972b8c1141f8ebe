"""What the gateway says of what is behind it: merged, no more than the routes let through."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Header, Query
from fastapi import Path as InPath
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from test_gateway import Client, Clock, listening, refused, serving

from oyez.config import GatewaySettings, Route, load
from oyez.errors import ConfigurationError
from oyez.gateway.openapi import served
from oyez.gateway.openapi.merged import Allowed, Description, Unusable, merged
from oyez.gateway.openapi.page import Page

HOSTILE = "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'>"
PAGE = Page()


class Line(BaseModel):
    """A line of an order."""

    sku: Annotated[str, Field(description="Of which article", max_length=40)]
    quantity: Annotated[int, Field(ge=1, le=99)] = 1


class Order(BaseModel):
    """What a customer has ordered."""

    lines: list[Line]
    note: str | None = None


class Secret(BaseModel):
    """For the back office."""

    margin: float


def orders() -> FastAPI:
    app = FastAPI()

    @app.get("/orders", summary="List orders", tags=["orders"])
    async def find(state: Annotated[str, Query(description="Which ones")]) -> list[Order]:
        raise NotImplementedError

    @app.post("/orders", summary="Place an order", tags=["orders"], status_code=202)
    async def place(order: Order, idempotency_key: Annotated[str, Header()]) -> Order:
        raise NotImplementedError

    @app.get("/orders/{order_id}", description=HOSTILE)
    async def order(order_id: Annotated[int, InPath(ge=1)]) -> Order:
        raise NotImplementedError

    @app.delete("/orders/{order_id}", summary="Cancel")
    async def cancel(order_id: int) -> None:
        raise NotImplementedError

    @app.get("/inner/books")
    async def books() -> Secret:
        raise NotImplementedError

    return app


ORDERS = orders().openapi()
OLD: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "stock", "version": "2"},
    "servers": [{"url": "http://10.0.0.7:9000/stock"}],
    "paths": {
        "/items/{sku}": {
            "parameters": [{"$ref": "#/components/parameters/Sku"}],
            "get": {
                "operationId": "find_orders_get",
                "x-inner": {"host": "10.0.0.7"},
                "servers": [{"url": "http://10.0.0.7:9000"}],
                "responses": {
                    "200": {
                        "description": "It",
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Line"}}
                        },
                        "links": {"next": {"operationId": "hidden"}},
                    }
                },
            },
        }
    },
    "components": {
        "parameters": {
            "Sku": {"name": "sku", "in": "path", "required": True, "schema": {"type": "string"}}
        },
        "schemas": {
            "Line": {
                "type": "object",
                "properties": {
                    "left": {"type": "integer", "nullable": True, "minimum": 0},
                    "price": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
                    "example": {"$ref": "#/components/schemas/Place"},
                    "like": {"type": "object", "example": {"$ref": "no reference"}},
                },
            },
            "Place": {"type": "string", "enum": ["north", "south"], "nullable": True},
            "Unused": {"type": "string"},
        },
    },
}


def answering(content: bytes, status: int = 200) -> Starlette:
    async def document(request: Request) -> Response:
        return Response(content, status)

    return Starlette(routes=[StarletteRoute("/openapi.json", document)])


TABLE = '[gateway.openapi]\naccess = "public"'


def settings(folder: Path, ports: dict[str, int], table: str = TABLE) -> Path:
    services = "".join(
        f'[services.{name}]\napp = "a:b"\nhttp = "127.0.0.1:{port}"\n'
        for name, port in ports.items()
    )
    (folder / "keys.toml").write_text(f'[keys.ci]\nsha256 = "{"0" * 64}"\n')
    (folder / "keys.toml").chmod(0o600)
    (folder / "oyez.toml").write_text(f"""
        [system]
        name = "shop"
        {services}
        [gateway]
        listen = "127.0.0.1:0"
        keys = "keys.toml"
        timeout = 2
        {table}
        [[gateway.routes]]
        path = "/orders"
        service = "orders"
        methods = ["GET", "POST"]
        [[gateway.routes]]
        path = "/orders"
        service = "orders"
        methods = ["DELETE"]
        access = "key"
        scopes = ["orders:cancel"]
        [[gateway.routes]]
        path = "/stock"
        service = "stock"
        access = "public"
        """)
    return folder / "oyez.toml"


@contextlib.asynccontextmanager
async def shop(
    folder: Path, stock: Any, clock: Clock | None = None, table: str = TABLE
) -> AsyncIterator[Client]:
    async with listening(orders()) as one, listening(stock) as other:
        file = settings(folder, {"orders": one, "stock": other}, table)
        async with serving(load(file, {}), clock) as client:
            yield client


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with shop(tmp_path, answering(json.dumps(OLD).encode())) as client:
        yield client


async def document(client: Client) -> dict[str, Any]:
    answer = await client.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = answer.json()
    validate(found)
    return found


async def test_one_valid_description_of_what_the_routes_let_through(client: Client) -> None:
    found = await document(client)
    assert found["info"]["title"] == "shop"
    assert {path: sorted(item) for path, item in found["paths"].items()} == {
        "/orders": ["get", "post"],
        "/orders/{order_id}": ["delete", "get"],
        "/stock/items/{sku}": ["get"],
    }
    for hidden in ("10.0.0.7", "/inner", "Secret", "Unused", "hidden"):
        assert hidden not in json.dumps(found)


async def test_components_of_the_same_name_are_told_apart(client: Client) -> None:
    found = await document(client)
    schemas = found["components"]["schemas"]
    assert {"orders_Line", "stock_Line", "Order", "Place", "Problem"} <= set(schemas)
    assert "Line" not in schemas
    items = schemas["Order"]["properties"]["lines"]["items"]
    assert items == {"$ref": "#/components/schemas/orders_Line"}
    properties = schemas["stock_Line"]["properties"]
    # A property may have the name of a word of OpenAPI, and an example may look like a reference.
    assert properties["example"] == {"$ref": "#/components/schemas/Place"}
    assert properties["like"]["example"] == {"$ref": "no reference"}
    ids = [op.get("operationId") for item in found["paths"].values() for op in item.values()]
    assert {"orders_find_orders_get", "stock_find_orders_get"} <= set(ids)


async def test_the_words_of_3_0_become_those_of_3_1(client: Client) -> None:
    found = await document(client)
    schemas = found["components"]["schemas"]
    properties = schemas["stock_Line"]["properties"]
    assert found["openapi"] == "3.1.0"
    assert properties["left"] == {"type": ["integer", "null"], "minimum": 0}
    assert properties["price"] == {"type": "number", "exclusiveMinimum": 0}
    assert schemas["Place"] == {"type": ["string", "null"], "enum": ["north", "south", None]}


async def test_who_may_do_it_is_said_by_the_routes(client: Client) -> None:
    found = await document(client)
    paths = found["paths"]
    assert paths["/orders"]["get"]["security"] == [{"session": []}, {"key": []}]
    cancel = paths["/orders/{order_id}"]["delete"]
    assert cancel["security"] == [{"key": ["orders:cancel"]}]
    assert {"401", "403"} <= set(cancel["responses"])
    assert paths["/stock/items/{sku}"]["get"]["security"] == []
    assert "401" not in paths["/stock/items/{sku}"]["get"]["responses"]
    assert set(found["components"]["securitySchemes"]) == {"session", "key"}


DEEP = b'{"openapi": "3.1.0", "paths": ' + b"[" * 100 + b"]" * 100 + b"}"
LACKING = json.dumps(OLD).replace("schemas/Place", "schemas/None").encode()
ELSEWHERE = json.dumps(OLD).replace("#/components/schemas/Place", "http://10.0.0.7/").encode()


@pytest.mark.parametrize(
    ("content", "status", "why"),
    [
        (b"", 404, "it has no description at /openapi.json (404)"),
        (b"<html>", 200, "its description is not JSON"),
        (b"[]", 200, "its description is no object"),
        (b'{"swagger": "2.0"}', 200, "is not OpenAPI 3.0 or 3.1"),
        (b'{"openapi": "4.0.0"}', 200, "is not OpenAPI 3.0 or 3.1"),
        (DEEP, 200, "is nested deeper than 64 levels"),
        (b" " * (served.MOST_BYTES + 1), 200, "its description can't be fetched"),
        (LACKING, 200, "which it lacks"),
        (ELSEWHERE, 200, "refers to what is not among its components"),
    ],
    ids=lambda value: f"{value}"[:30],
)
async def test_a_service_without_a_usable_one_is_left_out_and_named(
    tmp_path: Path, content: bytes, status: int, why: str
) -> None:
    async with shop(tmp_path, answering(content, status)) as client:
        found = await document(client)
        assert "/orders" in found["paths"]
        assert not [path for path in found["paths"] if path.startswith("/stock")]
        assert "- stock: " in found["info"]["description"]
        assert why in found["info"]["description"]
        assert "10.0.0.7" not in json.dumps(found)


async def test_it_is_kept_for_a_minute_and_less_in_part(tmp_path: Path) -> None:
    class Ahead(Clock):
        def monotonic(self) -> float:
            return super().monotonic() + self.ahead

    clock, asked, content = Ahead(), 0, b""

    async def answer(request: Request) -> Response:
        nonlocal asked
        asked += 1
        return Response(content)

    app = Starlette(routes=[StarletteRoute("/openapi.json", answer)])
    async with shop(tmp_path, app, clock) as client:
        assert "stock: " in (await document(client))["info"]["description"]
        content = json.dumps(OLD).encode()
        clock.ahead += served.FRESH_IN_PART + 0.1
        assert "/stock/items/{sku}" in (await document(client))["paths"]
        clock.ahead += served.FRESH / 2
        await document(client)
        assert asked == 2
        clock.ahead += served.FRESH / 2 + 0.1
        await document(client)
        assert asked == 3


async def test_it_is_for_those_who_are_known_unless_it_is_public(tmp_path: Path) -> None:
    async with shop(tmp_path, answering(b""), table="[gateway.openapi]") as client:
        for path in ("/openapi.json", "/reference"):
            refused(await client.get(path), 401, "credentials_missing")
        await client.post("/session")
        for path in ("/openapi.json", "/reference"):
            assert (await client.get(path)).status_code == 200
        refused(await client.post("/reference"), 405, "method_not_allowed")


async def test_the_page_shows_it_without_a_script(client: Client) -> None:
    answer = await client.get("/reference")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    page = answer.text
    assert "<script" not in page
    assert "&lt;script&gt;window.owned" in page
    assert "Place an order" in page
    base = f"{client.base_url}".rstrip("/")
    assert f"curl -X POST \\\n  {base}/orders" in page
    assert "://" not in page.replace(base, "")


async def test_without_the_table_there_is_neither(tmp_path: Path) -> None:
    file = settings(tmp_path, {"orders": 1, "stock": 2}, table="")
    async with serving(load(file, {})) as client:
        for path in ("/openapi.json", "/reference"):
            refused(await client.get(path), 404, "not_found")


def test_its_paths_are_not_for_routes(tmp_path: Path) -> None:
    file = settings(tmp_path, {"orders": 1, "stock": 2})
    file.write_text(file.read_text().replace('"/stock"', '"/reference"'))
    with pytest.raises(ConfigurationError, match=r"routes\[2\]\.path: .*the gateway doesn't use"):
        load(file, {})


def route(path: str, service: str = "orders", *methods: str) -> Route:
    return Route(path=path, service=service, methods=methods or ("GET",))


def test_a_template_is_let_through_as_its_paths_are() -> None:
    allowed = Allowed([route("/a"), route("/a/b", "stock"), route("/a/c", "orders", "POST")])
    assert allowed.route("orders", "/a/{id}", "GET") is not None
    assert allowed.route("orders", "/a", "HEAD") is not None
    assert allowed.route("stock", "/a/b/{id}", "GET") is not None
    for service, path, method in (
        ("orders", "/a/b/{id}", "GET"),  # it leads to the stock
        ("stock", "/a/{id}", "GET"),
        ("orders", "/a/c", "GET"),  # the longest route decides, also of methods
        ("orders", "/ab", "GET"),
        ("orders", "/a", "DELETE"),
        ("stock", "/{any}/b", "GET"),
    ):
        assert allowed.route(service, path, method) is None


def _schema(name: str) -> str:
    return f"#/components/schemas/{name}"


def described(service: str, schemas: dict[str, Any]) -> Description:
    response = {"description": "", "content": {"a/b": {"schema": {"$ref": _schema("Box")}}}}
    paths = {f"/{service}": {"get": {"responses": {"200": response}}}}
    document = {"openapi": "3.1.0", "paths": paths, "components": {"schemas": schemas}}
    return Description(service, document, Allowed([route(f"/{service}", service)]))


def made_of(*descriptions: Description) -> dict[str, Any]:
    return merged(descriptions, GatewaySettings(), title="t", version="1", left_out={})


def names(*descriptions: Description) -> set[str]:
    made = made_of(*descriptions)
    validate(made)
    return set(made["components"]["schemas"]) - {"Problem"}


def test_what_is_the_same_has_one_name() -> None:
    box = {"type": "array", "items": {"$ref": _schema("Part")}}
    whole, real = {"type": "integer"}, {"type": "number"}
    one = described("one", {"Box": box, "Part": whole})
    assert names(one, described("two", {"Box": box, "Part": whole})) == {"Box", "Part"}
    # What refers to something else is something else, although it reads the same.
    different = names(one, described("two", {"Box": box, "Part": real}))
    assert different == {"one_Box", "two_Box", "one_Part", "two_Part"}


def test_a_name_that_is_made_is_free() -> None:
    box, other = {"items": {"$ref": _schema("two_Box")}}, {"type": "string"}
    one, two = described("one", {"Box": box, "two_Box": other}), described("two", {"Box": other})
    assert names(one, two) == {"one_Box", "two_Box", "two_Box_"}


def test_references_in_a_circle_end() -> None:
    box = {"properties": {"inner": {"$ref": _schema("Box")}}}
    assert names(described("one", {"Box": box})) == {"Box"}


@pytest.mark.parametrize("path", ["x", {"get": None}, {"get": {"responses": "x", "tags": "y"}}])
def test_what_is_not_as_it_should_be_is_not_in_it(path: Any) -> None:
    document = {"openapi": "3.1.0", "paths": {"/a": path}, "servers": "x", "tags": [1, {}]}
    assert names(Description("one", document, Allowed([route("/a", "one")]))) == set()


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Where in a document something could stand instead: what holds it, and its key there."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    inner = [value[key] for key in keys if isinstance(value[key], dict | list)]
    return [(value, key) for key in keys] + [one for each in inner for one in nodes(each)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("#/components/a/b"),
    lambda of: st.lists(of, max_size=2) | st.dictionaries(st.text(max_size=5), of, max_size=2),
    max_leaves=4,
)


@given(st.data())
@hypothesis_settings(max_examples=150)
def test_no_description_breaks_the_page(data: st.DataObject) -> None:
    allowed = Allowed([route("/stock", "stock"), route("/orders", "stock", "POST", "GET")])
    document = copy.deepcopy(data.draw(st.sampled_from([OLD, ORDERS])))
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(nodes(document)))
        holder[key] = data.draw(JSON)
    with contextlib.suppress(Unusable):
        made = made_of(Description("stock", document, allowed))
        assert PAGE.of(made, "http://x")[1].endswith(b"</html>")


def test_a_description_that_grows_without_end_has_a_page() -> None:
    schemas = {
        f"S{n}": {"properties": {f"p{m}": {"$ref": _schema(f"S{n + 1}")} for m in range(60)}}
        for n in range(8)
    }
    body = {"content": {"application/json": {"schema": {"$ref": _schema("S0")}}}}
    paths = {"/a": {"post": {"requestBody": body, "responses": {"200": {"description": "x"}}}}}
    components = {"schemas": {**schemas, "S8": {}}}
    document = {"openapi": "3.1.0", "paths": paths, "components": components}
    made = made_of(Description("one", document, Allowed([route("/a", "one", "POST")])))
    assert len(PAGE.of(made, "http://x")[1]) < 1_000_000
