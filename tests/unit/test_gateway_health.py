"""Services that do not answer: the circuit breaker, and requests that are sent once more."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from test_gateway import broken, refused, serving, settings

from oyez.ambient import SystemAmbient
from oyez.config import load
from oyez.gateway import forward
from oyez.gateway.exchange import Refusal
from oyez.gateway.health import Health
from oyez.observe.metrics import Metrics
from oyez.signals import CircuitChanged, Signal

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Stopped(SystemAmbient):
    """The real surroundings, with a clock that stands still unless it is moved."""

    seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


class Watched:
    """A service's health, on a clock that is moved, with every state that was told."""

    def __init__(self) -> None:
        self.clock = Stopped()
        self.states: list[str] = []
        self.health = Health("orders", self.clock, self.tell)

    def tell(self, signal: Signal) -> None:
        assert isinstance(signal, CircuitChanged)
        assert signal.upstream == "orders"
        self.states.append(signal.state)

    def fails(self, times: int = 1) -> None:
        for _ in range(times):
            request = object()
            self.health.admit(request)
            self.health.failed(request)
            self.health.ended(request)

    def waits(self) -> int:
        """The seconds of Retry-After for a request that is refused."""
        with pytest.raises(Refusal) as caught:
            self.health.admit(object())
        assert (caught.value.status, caught.value.code) == (503, "service_unavailable")
        ((name, value),) = caught.value.headers
        assert name == b"retry-after"
        return int(value)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def opened(watched: Watched) -> None:
    watched.fails(4)
    watched.clock.seconds += 1
    watched.fails()
    assert watched.states[-1] == "open"


def test_it_opens_after_failures_in_a_row(watched: Watched) -> None:
    watched.fails(4)
    watched.clock.seconds += 5
    watched.health.well()
    watched.fails(4)
    watched.clock.seconds += 5
    assert watched.states == ["closed"]
    watched.fails()
    assert watched.states == ["closed", "open"]
    assert watched.waits() == 1


def test_many_failures_at_once_are_a_restart(watched: Watched) -> None:
    watched.fails(500)
    watched.clock.seconds += 0.9
    watched.fails(500)
    watched.health.well()
    assert watched.states == ["closed"]


def test_one_request_finds_out(watched: Watched) -> None:
    opened(watched)
    watched.clock.seconds += 0.5
    probe = object()
    watched.health.admit(probe)
    assert watched.states[-1] == "half-open"
    for _ in range(3):
        watched.waits()
    watched.health.well()
    watched.health.ended(probe)
    assert watched.states[-2:] == ["half-open", "closed"]
    watched.health.admit(object())


def test_it_is_open_for_twice_as_long_each_time(watched: Watched) -> None:
    opened(watched)
    for seconds in (0.5, 1, 2, 4, 8, 10, 10):
        watched.clock.seconds += seconds - 0.01
        watched.waits()
        watched.clock.seconds += 0.01
        watched.fails()
    assert watched.waits() == 10
    watched.clock.seconds += 10
    watched.health.admit(object())
    watched.health.well()
    opened(watched)
    assert watched.waits() == 1


def test_a_probe_whose_client_leaves_decides_nothing(watched: Watched) -> None:
    opened(watched)
    watched.clock.seconds += 0.5
    gone = object()
    watched.health.admit(gone)
    watched.health.ended(object())
    assert watched.states[-1] == "half-open"
    watched.health.ended(gone)
    watched.health.admit(object())
    assert watched.states[-3:] == ["half-open", "open", "half-open"]


def test_one_request_in_ten_is_repeated(watched: Watched) -> None:
    repeated = sum(watched.health.may_repeat() for _ in range(100))
    assert repeated == 10
    for _ in range(1000):
        watched.health.admit(object())
        repeated += watched.health.may_repeat()
    assert 105 <= repeated <= 111
    opened(watched)
    assert not watched.health.may_repeat()


# Over real sockets


class Service:
    """A service that breaks off the first requests, and answers the others."""

    def __init__(self, breaks: int, before: bytes = b"") -> None:
        self.breaks = breaks
        self.before = before
        self.methods: list[str] = []
        self.bodies: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = b"content-length: 4" in head
                self.bodies.append(await reader.readexactly(4) if length else b"")
                self.methods.append(head.split()[0].decode())
                if len(self.methods) <= self.breaks:
                    writer.write(self.before)
                    break
                writer.write(ANSWER if head[:4] != b"HEAD" else ANSWER[:-2])
        except asyncio.IncompleteReadError:
            pass
        writer.close()


def with_methods(folder: Path, port: int) -> Path:
    path = settings(folder, port).path
    every = '["GET", "POST", "PUT", "PATCH", "DELETE"]'
    path.write_text(path.read_text().replace('["GET", "POST"]', every))
    return path


@pytest.mark.parametrize(
    ("method", "times"),
    [("GET", 2), ("HEAD", 2), ("PUT", 2), ("DELETE", 2), ("POST", 1), ("PATCH", 1)],
)
async def test_only_an_idempotent_request_is_sent_once_more(
    tmp_path: Path, method: str, times: int
) -> None:
    service, metrics = Service(breaks=1), Metrics("gateway", service="gateway")
    async with broken(service) as port:
        config = load(with_methods(tmp_path, port), {})
        async with serving(config, observer=metrics) as client:
            body = b"body" if method in ("PUT", "POST", "PATCH") else None
            answer = await client.request(method, "/open", content=body)
            assert service.methods == [method] * times
            if times == 2:
                assert answer.status_code == 200
                assert service.bodies == [body or b""] * 2
            else:
                refused(answer, 502, "service_broken")
            scraped = (await metrics.render())[0].decode()
    told = 'oyez_gateway_repeated_total{route="/open",service="gateway"} 1.0'
    assert (told in scraped) == (times == 2)


async def test_a_request_is_repeated_once(tmp_path: Path) -> None:
    service = Service(breaks=9, before=b"HTTP/1.1 200 OK\r\n")
    async with broken(service) as port, serving(settings(tmp_path, port)) as client:
        refused(await client.get("/open"), 502, "service_broken")
        assert service.methods == ["GET", "GET"]


async def test_a_request_whose_answer_has_begun_is_not_repeated(tmp_path: Path) -> None:
    service = Service(breaks=9, before=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    async with broken(service) as port, serving(settings(tmp_path, port)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/open")
        assert service.methods == ["GET"]


async def test_a_service_that_does_not_answer_is_left_alone_until_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Quick(Stopped):
        """Waiting takes no time."""

        async def sleep(self, seconds: float) -> None:
            self.seconds += seconds
            await asyncio.sleep(0)

    metrics, ambient = Metrics("gateway", service="gateway"), Quick()
    circuit = 'oyez_gateway_circuit_open{service="gateway",upstream="orders"}'

    async def shown() -> str:
        return (await metrics.render())[0].decode()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = settings(tmp_path, listener.getsockname()[1])
        async with serving(config, ambient, metrics) as client:
            assert f"{circuit} 0.0" in await shown()
            for _ in range(5):
                refused(await client.get("/open"), 503, "service_unavailable")
            looked = ambient.seconds
            answer = refused(await client.get("/open"), 503, "service_unavailable")
            assert "at present" in answer.json()["detail"]
            assert int(answer.headers["retry-after"]) >= 1
            assert ambient.seconds == looked  # nobody tried to connect
            assert f"{circuit} 1.0" in await shown()
            assert (await client.get("/readyz")).status_code == 200
            server = await asyncio.start_server(Service(breaks=0), sock=listener)
            ambient.seconds += 10
            assert (await client.get("/open")).text == "ok"
            assert f"{circuit} 0.0" in await shown()
            server.close()
    said = capsys.readouterr().err
    for state in ("circuit open", "circuit half-open", "circuit closed"):
        assert state in said


async def test_an_error_keeps_nothing_of_the_requests_that_it_ended() -> None:
    """An exception that is raised again and again would grow by a traceback each time."""

    def frames(make: Callable[[], Refusal]) -> int:
        found = 0
        for _ in range(3):
            try:
                raise make()
            except Refusal as refusal:
                found, at = 0, refusal.__traceback__
                while at is not None:
                    found, at = found + 1, at.tb_next
        return found

    assert frames(forward._unreachable) == frames(forward._broken) == 1
