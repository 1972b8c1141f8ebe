"""The console: what services tell it, who gets in, what is shown, and what does not answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import Placed
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from oyez import Retry, Service, testing
from oyez.config import load
from oyez.console import system as asking
from oyez.console.access import LIFETIME, OPERATOR, Access, TooMany
from oyez.console.answers import Counts, Discard, LetterPage, Replica
from oyez.console.api import SHOWN, api
from oyez.console.app import console
from oyez.console.rates import Rates
from oyez.console.safe import differences, laid_out, seen
from oyez.console.system import System, Unanswered
from oyez.inspection.lag import ServiceLag
from oyez.listening import HttpServer, bind
from oyez.observe.metrics import Metrics
from oyez.ports import Changes
from oyez.project import Project
from oyez.runtime.admin import admin
from oyez.runtime.audit import list_acts
from oyez.testing import VirtualAmbient, running

TOKEN, READ, CODE = "operate-this", "read-this", "once-only"
EVENTS = {"Accept": "text/event-stream"}
SAME_SITE = {"Sec-Fetch-Site": "same-origin", "Origin": "http://console"}
HOSTILE = "<script>alert(1)</script>\u202e\u200b\x1b[2J"


def desk() -> Service:
    service = Service("desk")

    @service.on(Placed, retry=Retry(attempts=1))
    async def take(event: Placed) -> None:
        if event.order.startswith("bad"):
            raise ValueError(f"no {event.order} {HOSTILE}")

    return service


# -- the services' side ----------------------------------------------------------------------------


@asynccontextmanager
async def asked(token: str = TOKEN) -> AsyncIterator[tuple[httpx.AsyncClient, testing.System]]:
    """A client of the admin port of a desk with two dead letters and one handled event."""
    async with running(desk()) as system:
        process = system.processes["desk"]
        app = admin(process, token=TOKEN, metrics=Metrics().render, details=lambda: api(process))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://desk",
            headers={"Authorization": f"Bearer {token}"},
        ) as client:
            await client.get("/oyez/replica")
            for order in ("bad1", "good", "bad2"):
                await system.publish(Placed(order=order))
            await system.settled()
            yield client, system


PATHS = ("/replica", "/lag", "/letters", "/letters/1", "/letters/1/data", "/none")


async def test_nothing_is_told_without_the_token() -> None:
    for token in ("", "wrong", TOKEN + "x"):
        async with asked(token) as (client, _):
            answers = [await client.get(f"/oyez{path}") for path in PATHS]
            answers += [await client.post("/oyez/letters/1/redrive", content=b"{}")]
            assert {answer.status_code for answer in answers} == {401}
    async with asked() as (client, _):
        (letter,) = msgspec.json.decode(
            (await client.get("/oyez/letters?limit=1")).content, type=LetterPage
        ).letters
        assert letter.state == "dead"


async def test_a_process_tells_of_its_code_its_counts_and_its_lag() -> None:
    async with asked() as (client, _):
        answer = await client.get("/oyez/replica")
        replica = msgspec.json.decode(answer.content, type=Replica)
        assert replica.handlers == {"take": ("shop.placed",)}
        assert replica.reasons == ()
        assert sum(replica.counts.handled.values()) == 3
        assert replica.counts.dead == {"take": 2}
        lag = msgspec.json.decode((await client.get("/oyez/lag")).content, type=ServiceLag)
        assert (lag.service, lag.lag, lag.dead) == ("desk", 0, 2)


async def test_letters_are_listed_shown_and_settled() -> None:
    async with asked() as (client, system):
        page = msgspec.json.decode(
            (await client.get("/oyez/letters?limit=1")).content, type=LetterPage
        )
        assert page.more
        after = page.letters[0].id
        rest = msgspec.json.decode(
            (await client.get(f"/oyez/letters?after={after}")).content, type=LetterPage
        )
        assert [letter.id for letter in rest.letters] == [after + 1]
        data = (await client.get(f"/oyez/letters/{after}/data")).json()
        assert data == {"order": page.letters[0].key}
        body = msgspec.json.encode({"who": "ada", "data": b'{"order": "good"}'})
        answer = await client.post(f"/oyez/letters/{after}/redrive", content=body)
        assert answer.status_code == 200
        await system.settled()
        again = await client.post(f"/oyez/letters/{after}/redrive", content=body)
        assert (again.status_code, "redriven already" in again.json()["detail"]) == (409, True)
        why = b'{"who": "ada", "why": "old"}'
        gone = await client.post(f"/oyez/letters/{after + 1}/discard", content=why)
        assert gone.status_code == 200
        acts = await list_acts(system.processes["desk"].store)
        assert [(act.who, act.via, act.act, act.reason) for act in acts] == [
            ("ada", "console", "dead.discard", "old"),
            ("ada", "console", "dead.redrive", ""),
        ]
        left = (await client.get("/oyez/letters")).json()
        assert left == {"letters": [], "more": False}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/letters?limit=x", None, 422),
        ("/letters?after=-1", None, 422),
        (f"/letters?after={'9' * 30}", None, 422),
        ("/letters/99", None, 409),
        ("/letters/99/data", None, 404),
        ("/letters/1/redrive", b"nonsense", 422),
        ("/letters/1/redrive", b'{"data": 5}', 422),
        ("/letters/1/redrive", b'{"data": "' + b"x" * 2_000_000 + b'"}', 422),
        ("/letters/1/redrive", b"{}", 422),
        ("/letters/1/redrive", b'{"who": " "}', 422),
        ("/letters/1/redrive", b'{"who": "a\\u202eb"}', 422),
        ("/letters/1/redrive", b'{"who": "' + b"x" * 201 + b'"}', 422),
        ("/letters/1/discard", b'{"why": "x"}', 422),
        ("/letters/1/discard", b'{"who": "ada", "why": ""}', 422),
        ("/letters/1/discard", b'{"who": "ada", "why": "' + b"x" * 501 + b'"}', 422),
        ("/none", None, 404),
    ],
)
async def test_what_is_asked_wrongly_is_refused(path: str, body: bytes | None, status: int) -> None:
    async with asked() as (client, _):
        method = "GET" if body is None else "POST"
        answer = await client.request(method, f"/oyez{path}", content=body)
        assert answer.status_code == status


# -- who gets in -----------------------------------------------------------------------------------


class World:
    """A desk with its admin port on a socket, and its console."""

    def __init__(
        self, client: httpx.AsyncClient, system: testing.System, access: Access, app: Starlette
    ) -> None:
        self.app = app
        self.client = client
        self.system = system
        self.access = access

    async def sign_in(self, token: str = TOKEN, **headers: str) -> httpx.Response:
        form = {"token": token, "next": "/"}
        return await self.client.post("/sign-in", data=form, headers={**SAME_SITE, **headers})

    async def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', (await self.client.get("/dead")).text)
        assert found
        return found[1]


@asynccontextmanager
async def served(app: object) -> AsyncIterator[str]:
    server = HttpServer(app, bind("127.0.0.1", 0, AssertionError), grace=1.0, lifespan="off")  # type: ignore[arg-type]
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()


def project(folder: Path, **admins: str) -> Project:
    """A project whose services answer at these addresses."""
    lines = ['[system]\nname = "till"\ndata = "."']
    lines += [f'[services.{n}]\napp = "{n}:service"\nadmin = "{at}"' for n, at in admins.items()]
    (folder / "oyez.toml").write_text("\n".join(lines))
    return Project(load(folder, {}))


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    async with running(desk()) as system:
        process = system.processes["desk"]
        async with served(
            admin(process, token=TOKEN, metrics=Metrics().render, details=lambda: api(process))
        ) as at:
            await system.publish(Placed(order="bad1"))
            await system.settled()
            found = project(tmp_path, desk=at)
            access = Access(
                found.ambient, name="till", token=TOKEN, read_token=READ, code=CODE, secure=True
            )
            asks = System(found)
            app = console(asks, access, found.ambient)
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app), base_url="https://console"
            ) as client:
                SAME_SITE["Origin"] = "https://console"
                yield World(client, system, access, app)
            await asks.close()


async def test_pages_after_the_sign_in(world: World) -> None:
    answer = await world.sign_in()
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    for flag in ("HttpOnly", "Secure", "SameSite=strict", "Path=/"):
        assert flag in cookie
    assert cookie.startswith("__Host-oyez-till=")
    overview = await world.client.get("/")
    assert "1 dead letter of desk.take" in overview.text
    assert 'href="/dead/desk/1"' in overview.text
    assert re.search(r'<a href="#service-desk"><text class="name"[^>]*>desk <tspan', overview.text)
    assert '<tspan class="figure bad">1 dead</tspan>' in overview.text
    policy = overview.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert overview.headers["cache-control"] == "no-store"
    assert not re.search(r"<style|style=|<script(?! src=)|\son\w+=", overview.text)
    letter = await world.client.get("/dead/desk/1")
    assert "&lt;script&gt;alert(1)" in letter.text
    assert "<script>alert" not in letter.text
    assert not {"\u202e", "\u200b", "\x1b"} & set(letter.text)
    data = await world.client.get("/dead/desk/1/data")
    assert data.json() == {"order": "bad1"}
    assert data.headers["content-disposition"].startswith("attachment")
    for missing in ("/dead/nobody", "/dead/nobody/1", "/none", "/dead/desk/x"):
        assert (await world.client.get(missing)).status_code == 404
    assert (await world.client.get("/dead/desk/99")).status_code == 409


async def test_an_operator_redrives_and_a_reader_may_not(world: World) -> None:
    await world.sign_in(READ)
    csrf = await world.csrf()
    for act in ("redrive", "discard", "edit"):
        answer = await world.client.post(
            f"/dead/desk/1/{act}", data={"csrf": csrf, "why": "x"}, headers=SAME_SITE
        )
        assert answer.status_code == 403
    page = await world.client.get("/dead/desk/1")
    assert "Signed in to read" in page.text
    await world.sign_in()
    edited = {"csrf": await world.csrf(), "data": '{"order": "good"}'}
    shown = await world.client.post("/dead/desk/1/edit", data=edited, headers=SAME_SITE)
    assert 'class="new"' in shown.text
    done = await world.client.post("/dead/desk/1/redrive", data=edited, headers=SAME_SITE)
    assert (done.status_code, done.headers["location"]) == (303, "/dead/desk/1?done=redrive")
    assert "Redriven: <bdi>payload replaced" in (await world.client.get("/dead/desk/1")).text
    again = await world.client.post("/dead/desk/1/redrive", data=edited, headers=SAME_SITE)
    assert again.status_code == 409


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://console"},
        {"Sec-Fetch-Site": "same-site", "Origin": "https://console"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil"},
        {"Origin": "https://evil"},
        {"Origin": "null"},
    ],
)
async def test_a_post_from_another_site_is_refused(world: World, headers: dict[str, str]) -> None:
    await world.sign_in()
    form = {"csrf": await world.csrf(), "why": "x", "token": TOKEN}
    for path in ("/dead/desk/1/discard", "/sign-out", "/sign-in"):
        answer = await world.client.post(path, data=form, headers=headers)
        assert answer.status_code == 403
    assert (await world.client.get("/dead/desk/1")).text.count("Discard for good") == 1


async def test_a_form_of_no_or_another_session_is_refused(world: World) -> None:
    await world.sign_in()
    old = await world.csrf()
    await world.sign_in()
    for csrf in ("", old, "é"):
        form = {"csrf": csrf, "why": "x"}
        answer = await world.client.post("/dead/desk/1/discard", data=form, headers=SAME_SITE)
        assert answer.status_code == 403


async def test_a_session_can_not_be_planted_or_used_again(world: World) -> None:
    name = "__Host-oyez-till"
    world.client.cookies.set(name, "planted", domain="console", path="/")
    assert (await world.client.get("/dead")).status_code == 303
    world.client.cookies.clear()
    await world.sign_in()
    kept = world.client.cookies[name]
    assert kept != "planted"
    csrf = await world.csrf()
    out = await world.client.post("/sign-out", data={"csrf": csrf}, headers=SAME_SITE)
    assert out.status_code == 303
    world.client.cookies.set(name, kept, domain="console", path="/")
    assert (await world.client.get("/dead")).status_code == 303


async def test_a_form_has_a_size(world: World) -> None:
    large = {"token": "x" * 5_000_000}
    answer = await world.client.post("/sign-in", data=large, headers=SAME_SITE)
    assert answer.status_code == 413


async def test_a_page_is_kept_up_to_date_while_it_is_open_and_its_session_lasts(
    world: World,
) -> None:
    await world.sign_in()
    cookie = "; ".join(f"{name}={value}" for name, value in world.client.cookies.items())
    live = world.app.state.desk.live
    asks = world.app.state.desk.system
    async with served(world.app) as at, httpx.AsyncClient(base_url=f"http://{at}") as client:
        assert (await client.get("/live/overview", headers=EVENTS)).status_code == 401
        headers = {**EVENTS, "Cookie": cookie}
        async with client.stream("GET", "/live/overview", headers=headers) as answer:
            lines = answer.aiter_lines()
            assert (await anext(lines)).startswith("data: <section")
            assert live.viewers == 1
            await asks.act("desk", "/oyez/letters/1/discard", Discard(who="ada", why="no need"))
            await world.system.advance(2.0)  # what it measured last is not fresh any more
            async with asyncio.timeout(20):
                async for line in lines:
                    if "Nothing is wrong" in line:
                        break
        async with asyncio.timeout(20):
            while live.viewers:
                await asyncio.sleep(0.01)
        async with client.stream("GET", "/live/overview", headers=headers) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            request = Request({"type": "http", "headers": [(b"cookie", cookie.encode())]})
            world.access.end(request, Response())
            async with asyncio.timeout(20):
                async for _ in lines:  # it ends by itself
                    pass
    assert live.viewers == 0


async def test_no_password_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    text = """
[system]
name = "till"
data = "."
broker = "redis://me:canary@127.0.0.1:1?deadline=0.2"
[services.desk]
app = "desk:service"
store = "postgresql://me:canary@127.0.0.1:1/none?deadline=0.2"
"""
    (tmp_path / "oyez.toml").write_text(text)
    found = Project(load(tmp_path, {}))
    asks = System(found)
    app = console(asks, Access(found.ambient, name="till", token=TOKEN), found.ambient)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="https://console"
    ) as client:
        headers = {**SAME_SITE, "Origin": "https://console"}
        await client.post("/sign-in", data={"token": TOKEN}, headers=headers)
        for path in ("/", "/dead", "/dead/desk", "/dead/desk/1"):
            page = await client.get(path)
            assert "127.0.0.1:1" in page.text
            assert "canary" not in page.text
            assert TOKEN not in page.text
    await asks.close()


@pytest.mark.parametrize("wanted", ["//evil", "https://evil", "/\\evil", "/%5cevil", "", "/a\nb"])
async def test_a_sign_in_leads_to_no_other_site(world: World, wanted: str) -> None:
    form = {"token": TOKEN, "next": wanted}
    answer = await world.client.post("/sign-in", data=form, headers=SAME_SITE)
    assert answer.headers["location"] == "/"


def test_a_link_works_once_and_sessions_end() -> None:
    ambient = VirtualAmbient()
    access = Access(ambient, name="till", token=TOKEN, code=CODE)
    assert access.sign_in(CODE) == OPERATOR
    assert access.sign_in(CODE) is None
    assert access.sign_in("") is None
    assert access.sign_in(READ) is None
    for _ in range(17):
        assert access.sign_in("guess") is None
    with pytest.raises(TooMany):
        access.sign_in(TOKEN)


async def test_a_session_ends_by_itself() -> None:
    ambient = VirtualAmbient()
    access = Access(ambient, name="till", token=TOKEN)
    answer = Response()
    access.begin(OPERATOR, answer)
    cookie = answer.headers["set-cookie"].partition(";")[0]
    request = Request({"type": "http", "headers": [(b"cookie", cookie.encode())]})
    found = access.session(request)
    assert found is not None
    assert found.person == OPERATOR
    await ambient.advance(LIFETIME + 1)
    assert access.session(request) is None


# -- what does not answer --------------------------------------------------------------------------

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


def _says(body: bytes, head: bytes = b"HTTP/1.1 200 OK\r\n", length: int | None = None) -> Reply:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        size = len(body) if length is None else length
        writer.write(head + f"Content-Length: {size}\r\n\r\n".encode() + body)
        try:
            await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    return reply


BROKEN = {
    "hangs": (_hangs, "no answer within"),
    "garbage": (_says(b"<html>"), "can't be read"),
    "other": (_says(b'{"service": 1}'), "can't be read"),
    "large": (_says(b" " * 10_000_000), "more than"),
    "short": (_says(b"{", length=100), "no connection"),
    "odd": (_says(b"", head=b"HTTP/9 zero\r\n"), "no connection"),
    "sorry": (_says(b"{}", head=b"HTTP/1.1 500 No\r\n"), "it answered 500"),
}


async def test_what_does_not_answer_is_a_gap_and_takes_nothing_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    monkeypatch.setattr(asking, "DEADLINE", 1.0)
    servers = {
        name: await asyncio.start_server(reply, "127.0.0.1", 0)
        for name, (reply, _) in BROKEN.items()
    }
    at = {n: f"127.0.0.1:{s.sockets[0].getsockname()[1]}" for n, s in servers.items()}
    async with running(desk()) as system:
        process = system.processes["desk"]
        app = admin(process, token=TOKEN, metrics=Metrics().render, details=lambda: api(process))
        async with served(app) as desk_at:
            asks = System(project(tmp_path, **at, silent="127.0.0.1:1", desk=desk_at))
            found = {answer.service: answer for answer in await asks.replicas()}
            with pytest.raises(Unanswered) as refused:
                await asks.letter("silent", 1)
            await asks.close()
    for server in servers.values():
        server.close()
    good = found.pop("desk")
    assert good.gap is None
    assert good.value is not None
    assert good.value.service == "desk"
    assert "no connection" in str(found.pop("silent").gap)
    assert refused.value.status == 503
    for name, answer in found.items():
        assert answer.value is None
        assert BROKEN[name][1] in str(answer.gap)


async def test_replicas_on_free_ports_are_found_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    async with running(desk()) as system:
        process = system.processes["desk"]
        app = admin(process, token=TOKEN, metrics=Metrics().render, details=lambda: api(process))
        async with served(app) as at:
            made = project(tmp_path, desk="127.0.0.1:0", never="127.0.0.1:0")
            store = made.store("desk")
            await store.open()
            sql = "insert into oyez_replica (owner, until, started, note) values ('a', :u, 0, :at)"
            row = {"u": made.ambient.now() + 60, "at": at.replace("127.0.0.1", "0.0.0.0")}
            await store.begin().commit(Changes(writes=[(sql, [row])]))
            await store.close()
            asks = System(made)
            there, never = await asks.replicas()
            assert there.value is not None
            assert there.at == at
            assert never.gap is not None
            assert never.gap.cause == "not-created"
            await asks.close()


# -- what is shown ---------------------------------------------------------------------------------


@given(st.text(max_size=300))
def test_nothing_is_markup_or_unseen(text: str) -> None:
    shown = str(seen(text, 200))
    inner = shown.removeprefix("<bdi>").removesuffix("</bdi>")
    plain = re.sub(r'<span class="unseen">[^<>]*</span>', "", inner)
    assert not set(plain) & set("<>\"'")
    assert all(char.isprintable() or char in "\n\t" for char in plain)


@pytest.mark.parametrize("char", ["\u202e", "\u2066", "\u200b", "\u2060", "\ufeff", "\x1b", "\x00",
                                  "\u3164", "\u2800", "\ufe0f", "\u034f", "\ud800"])  # fmt: skip
def test_what_nobody_sees_is_named(char: str) -> None:
    assert f"U+{ord(char):04X}" in seen(f"a{char}b")
    assert char not in seen(f"a{char}b")


def test_a_text_is_cut_and_says_so() -> None:
    assert "… 9,990 more" not in seen("x" * 10_000, 10)
    assert "… 9990 more characters" in seen("x" * 10_000, 10)


@given(st.binary(max_size=400), st.integers(0, 10))
def test_any_payload_is_laid_out(data: bytes, more: int) -> None:
    shown = laid_out(data, len(data) + more)
    assert shown.form in ("JSON", "text", "bytes")
    assert not shown.whole or more == 0


def test_payloads() -> None:
    assert laid_out(b'{"a":[1]}', 9).text == '{\n  "a": [\n    1\n  ]\n}'
    assert laid_out(b"[" * 50_000 + b"]" * 50_000, 100_000).form == "text"
    assert laid_out(b"\xff\x00", 2).text.startswith("00000000  ff 00")
    cut = laid_out(("é" * SHOWN).encode()[: SHOWN - 1], 2 * SHOWN)
    assert (cut.form, cut.whole) == ("text", False)


def test_differences() -> None:
    assert ("gone", "b") in differences("a\nb\nc", "a\nd\nc")
    assert ("new", "d") in differences("a\nb\nc", "a\nd\nc")
    assert differences("same", "same") == []


def test_rates_are_of_what_was_counted_between_two_looks() -> None:
    def replica(owner: str, handled: int) -> Replica:
        counts = Counts(handled={"s": handled}, published={}, retried={}, dead={})
        return Replica(
            service="desk", owner=owner, publishes=(), handlers={}, reasons=(), warnings=(),
            counts=counts,
        )  # fmt: skip

    rates = Rates()
    rates.note(0.0, [replica("a", 100)])
    assert rates.now("desk") is None
    rates.note(2.0, [replica("a", 120), replica("b", 1000)])
    assert rates.handled("desk") == [10.0]
    rates.note(4.0, [replica("a", 0), replica("b", 1010)])
    assert rates.handled("desk") == [10.0, 5.0]
    rates.note(6.0, [])
    assert rates.now("desk") is None
