"""Holds a broker and a store together to guarantees G1 to G8, with real processes that are killed.

::

    class TestMyBrokerOnSqlite(DeliverySuite):
        def broker(self, tmp_path):
            return "mybroker://localhost:1234"

`DeliverySuite` is for any broker that several processes can use. `ServerDeliverySuite` also cuts
the connection to the broker's server and kills it; `StoreServerSuite` does so with the store's.
Needs pytest and pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import msgspec
import pytest

from oyez.ports import Capabilities, Record
from oyez.testing.broker_suite import RESUMES, Server
from oyez.testing.proxy import Proxy
from oyez.testing.ticks import Ticks, paused, ticking, until

NAMES = tuple(f"clock-{n}" for n in range(24))
TAKES_OVER = 5.0
"""Seconds after a ``kill -9`` within which another replica owns everything."""
BACKLOG = 64 * 1024 * 1024
"""Bytes that wait for a process in the test of its memory."""
MEMORY = 256 * 1024 * 1024
"""Bytes that the process may have resident at any time."""


class DeliverySuite:
    """Subclass it under a name that begins with ``Test`` and override `broker` and `store`."""

    pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(300)]  # noqa: RUF012 - pytest's form

    declared: ClassVar[Capabilities | None] = None
    """What the broker said of itself when a test last opened it."""

    def broker(self, tmp_path: Path) -> str:
        """The broker's URL."""
        raise NotImplementedError

    def store(self, tmp_path: Path) -> str:
        """The URL of a store that is empty at the beginning of each test."""
        return "sqlite:.oyez/counter.db"

    @asynccontextmanager
    async def ticking(self, tmp_path: Path, **urls: str) -> AsyncIterator[Ticks]:
        """The system under test; ``urls`` replace what `broker` and `store` say."""
        given = {"broker": self.broker(tmp_path), "store": self.store(tmp_path), **urls}
        async with ticking(tmp_path / "ticks", **given) as system:
            type(self).declared = system.broker.capabilities
            yield system

    # -- nothing lost, nothing doubled, in order (G1, G2, G3) --------------------------------------

    async def test_each_event_has_its_effect_once_and_in_order(self, tmp_path: Path) -> None:
        """And so has each event that it led to (G1, G2, G3)."""
        async with self.ticking(tmp_path) as ticks:
            await ticks.started()
            for _ in range(10):
                await ticks.tick(*NAMES)
            await ticks.all_seen(*NAMES)

    async def test_a_service_that_is_killed_loses_and_doubles_nothing(self, tmp_path: Path) -> None:
        """``kill -9`` at any moment under load, five times (G1, G2, G3)."""
        chance = random.Random()  # noqa: S311 - any moment will do
        async with self.ticking(tmp_path) as ticks:
            await ticks.started()
            for _ in range(5):
                before = len(await ticks.seen())
                for _ in range(4):
                    await ticks.tick(*NAMES)
                wanted = before + chance.randrange(1, 2 * len(NAMES))

                async def reached(count: int = wanted) -> bool:
                    return len(await ticks.seen()) >= count

                await until(reached)
                ticks.replicas[-1].kill()
                ticks.start_replica()
            await ticks.tick(*NAMES)
            await ticks.all_seen(*NAMES)

    async def test_copies_of_an_event_have_one_effect(self, tmp_path: Path) -> None:
        """Sent twice, at once, and again on another partition (G2)."""
        async with self.ticking(tmp_path) as ticks:
            await ticks.started()
            records = ticks.ticking(*NAMES)
            copies = [msgspec.structs.replace(record, key="elsewhere") for record in records]
            await asyncio.gather(*(ticks.broker.publish(records) for _ in range(3)))
            await ticks.broker.publish(copies)
            await ticks.all_seen(*NAMES)
            await ticks.tick(*NAMES)
            await ticks.all_seen(*NAMES)

    async def test_a_failing_event_holds_up_its_own_key_alone(self, tmp_path: Path) -> None:
        """Later events of its key wait behind its retries; the others go on (G3, G4)."""
        async with self.ticking(tmp_path) as ticks:
            (ticks.root / "broken").touch()
            await ticks.started()
            await ticks.tick("poison", *NAMES)
            (ticks.root / "broken").unlink()
            await ticks.tick("poison", *NAMES)
            await ticks.all_seen(*NAMES)
            # Healed in time, both are there and in order; too late, the first one is a dead letter.
            await until(lambda: ticks.seen("poison"))

            async def settled() -> bool:
                numbers = [number for _, number, _ in await ticks.seen("poison")]
                dead = await ticks.query("select 1 as one from oyez_dead")
                return numbers == [1, 2] if not dead else numbers == [2]

            await until(settled)

    # -- poison (G4) -------------------------------------------------------------------------------

    async def test_an_event_that_always_fails_is_dead_and_is_healed_by_a_redrive(
        self, tmp_path: Path
    ) -> None:
        """With its reason, traceback and attempts; ``oyez dead redrive`` brings it back (G4)."""
        async with self.ticking(tmp_path) as ticks:
            (ticks.root / "broken").touch()
            await ticks.started()
            for _ in range(3):
                await ticks.tick("poison", *NAMES)
            await ticks.all_seen(*NAMES)

            async def dead() -> bool:
                return len(await ticks.query("select * from oyez_dead")) == 3

            await until(dead)
            letters = _letters(ticks)
            assert {letter["key"] for letter in letters} == {"poison"}
            assert letters[0]["reason"] == "failed 3 of 3 attempts: ValueError: tick 1 is poison"
            shown = json.loads(ticks.run("dead", "show", "counter", "1", "--json").stdout)
            assert "raise ValueError" in shown["traceback"]
            assert [entry["attempt"] for entry in shown["history"]] == [1, 2, 3]
            assert await ticks.seen("poison") == []
            (ticks.root / "broken").unlink()
            done = ticks.run("dead", "redrive", "counter", "--all", "--yes")
            assert done.returncode == 0, done.stderr

            async def healed() -> bool:
                return len(await ticks.seen("poison")) == 3

            await until(healed)
            assert _letters(ticks) == []
            assert ticks.run("dead", "redrive", "counter", "1").returncode == 1

    async def test_what_can_not_be_read_is_dead_with_its_bytes(self, tmp_path: Path) -> None:
        """Broken data or envelope, a tombstone, an unknown version; the rest goes on (G4)."""
        async with self.ticking(tmp_path) as ticks:
            await ticks.started()
            (good,) = ticks.ticking("clock-0")
            number = good.headers["id"]
            junk = b'\xff\xfe{"name":'

            def bad(name: str, data: bytes | None = good.data, **headers: str | None) -> Record:
                merged: dict[str, str | None] = {
                    **good.headers,
                    "id": f"{name}-{number}",
                    **headers,
                }
                kept = {key: value for key, value in merged.items() if value is not None}
                return msgspec.structs.replace(good, headers=kept, data=data)

            version = good.headers["dataschema"].rpartition(":")[0] + ":99"
            records = [
                bad("junk", junk),
                bad("headless", source=None),
                bad("tombstone", None),
                bad("version", dataschema=version),
            ]
            await ticks.broker.publish([*records, good])

            async def dead() -> bool:
                return len(await ticks.query("select * from oyez_dead")) == len(records)

            await until(dead)
            await ticks.all_seen("clock-0")
            rows = await ticks.query("select event_id, data from oyez_dead order by event_id")
            kept = {row["event_id"].partition("-")[0]: row["data"] for row in rows}
            assert kept == {
                "junk": junk, "headless": good.data, "tombstone": None, "version": good.data
            }  # fmt: skip

    async def test_an_event_that_kills_its_process_is_bounded(self, tmp_path: Path) -> None:
        """It is dead after some deaths, and those beside it are handled (G4)."""
        async with self.ticking(tmp_path) as ticks:
            (ticks.root / "broken").touch()
            await ticks.started()
            await ticks.tick(*NAMES)
            await ticks.tick("deadly", *NAMES)
            deaths = 0

            async def dead() -> int:
                nonlocal deaths
                if ticks.replicas[-1].poll() is not None:
                    assert ticks.replicas[-1].returncode == 66
                    deaths += 1
                    assert deaths < 12, "nothing stops it"
                    ticks.start_replica()
                return len(await ticks.query("select * from oyez_dead"))

            await until(dead, 120.0)
            await ticks.all_seen(*NAMES)
            (row,) = await ticks.query("select reason, handler, key from oyez_dead")
            assert (row["handler"], row["key"]) == ("count", "deadly")
            assert "the process died" in row["reason"]
            assert ticks.replicas[-1].poll() is None

    # -- replicas (G3, G7) -------------------------------------------------------------------------

    async def test_replicas_share_and_one_takes_over_from_the_dead(self, tmp_path: Path) -> None:
        """Within five seconds of a ``kill -9``; a third one joins; order stands (G3, G7)."""
        async with self.ticking(tmp_path) as ticks:
            first, second = await ticks.started(2)
            for _ in range(10):
                await ticks.tick(*NAMES)
            first.kill()
            await ticks.shared_by(second, seconds=TAKES_OVER)
            for _ in range(10):
                await ticks.tick(*NAMES)
            await ticks.all_seen(*NAMES)
            await ticks.started()
            await ticks.tick(*NAMES)
            await ticks.all_seen(*NAMES)

    async def test_a_replica_that_is_told_to_stop_hands_over(self, tmp_path: Path) -> None:
        """SIGTERM: what is in flight is finished, it exits 0, and nothing comes twice (G7)."""
        async with self.ticking(tmp_path) as ticks:
            first, second = await ticks.started(2)
            for _ in range(10):
                await ticks.tick(*NAMES)
            first.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(first.wait, 15) == 0
            await ticks.tick(*NAMES)
            await ticks.all_seen(*NAMES)
            await ticks.shared_by(second)

    async def test_a_paused_replica_is_replaced_and_its_commit_is_fenced(
        self, tmp_path: Path
    ) -> None:
        """A zombie that wakes in the middle of a handler changes nothing (G3)."""
        async with self.ticking(tmp_path) as ticks:
            (ticks.root / "slow").touch()
            (zombie,) = await ticks.started()
            await ticks.tick("slow")
            await until(_exists(ticks.root / f"started-{zombie.pid}"))
            with paused(zombie):
                other = ticks.start_replica()
                await ticks.shared_by(other)
                await until(_exists(ticks.root / f"started-{other.pid}"), 60.0)
                (ticks.root / "slow").unlink()
                await until(lambda: ticks.seen("slow"))
                assert await ticks.seen("slow") == [("slow", 1, other.pid)]
            await ticks.tick("slow", *NAMES)
            await ticks.all_seen("slow", *NAMES)

    # -- memory, history, truth (G5, G6, G8) -------------------------------------------------------

    @pytest.mark.timeout(300)
    async def test_a_backlog_does_not_fill_the_memory(self, tmp_path: Path) -> None:
        """64 MiB that wait for a process are handled in bounded memory (G6)."""
        async with self.ticking(tmp_path) as ticks:
            (replica,) = await ticks.started()
            with paused(replica):
                padding = 16_384
                for _ in range(BACKLOG // padding // len(NAMES)):
                    await ticks.tick(*NAMES, padding=padding)
            await ticks.shared_by(replica)
            await ticks.all_seen(*NAMES, seconds=240.0)
            status = Path(f"/proc/{replica.pid}/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            assert int(peak.split()[1]) * 1024 < MEMORY

    async def test_a_late_joiner_reads_from_the_beginning(self, tmp_path: Path) -> None:
        """What was announced before the service ever ran reaches it, on a log (G8)."""
        async with self.ticking(tmp_path) as ticks:
            if not ticks.broker.capabilities.history:
                pytest.skip("capabilities.history is declared False")
            for _ in range(5):
                await ticks.tick(*NAMES)
            await ticks.started()
            await ticks.all_seen(*NAMES)

    async def test_lag_is_told_and_is_zero_at_the_end(self, tmp_path: Path) -> None:
        """By ``oyez lag``, while the service stands still and after it has caught up (G5)."""
        async with self.ticking(tmp_path) as ticks:
            await ticks.started()
            await ticks.tick(*NAMES)
            await ticks.all_seen(*NAMES)

            async def caught_up() -> bool:
                return await asyncio.to_thread(_lag, ticks) == 0

            await until(caught_up)
            ticks.replicas[-1].kill()
            await ticks.tick(*NAMES)
            assert await asyncio.to_thread(_lag, ticks) == len(NAMES)


class ServerDeliverySuite(DeliverySuite):
    """Besides, with a broker's server that fails."""

    def server(self, tmp_path: Path) -> Server:
        """The server behind `broker`."""
        raise NotImplementedError

    def proxy(self, tmp_path: Path) -> Proxy:
        """Between the service and the broker's server; not started yet."""
        raise NotImplementedError

    def broker_through(self, tmp_path: Path, proxy: Proxy) -> str:
        """As `broker`, but by way of the proxy."""
        raise NotImplementedError

    @pytest.mark.parametrize("fault", ["cut", "stall"])
    async def test_a_broker_out_of_reach_is_told_and_survived(
        self, tmp_path: Path, fault: str
    ) -> None:
        """The service answers, buffers, lives and is not ready; then it resumes (G1, G5)."""
        async with self.proxy(tmp_path) as proxy:
            through = self.broker_through(tmp_path, proxy)
            outside = self.broker(tmp_path)
            async with self.ticking(tmp_path, broker=through, outside=outside) as ticks:
                await ticks.started()
                await ticks.tick(*NAMES)
                await ticks.all_seen(*NAMES)
                assert (await ticks.admin("/readyz")).status_code == 200
                getattr(proxy, fault)()
                await ticks.tick(*NAMES)
                await until(lambda: _tells(ticks, "/readyz", 503), RESUMES)
                for number in range(1, 4):
                    await ticks.wind("wound", number, ticks.http())
                assert (await ticks.admin("/livez")).status_code == 200
                proxy.restore()
                await ticks.all_seen(*NAMES, seconds=RESUMES)
                await until(lambda: _tells(ticks, "/readyz", 200), RESUMES)

                async def wound() -> bool:
                    found = [number for _, number, _ in await ticks.seen("wound")]
                    return found == [1, 2, 3]

                await until(wound)

    async def test_the_brokers_server_is_killed_under_load(self, tmp_path: Path) -> None:
        """``kill -9`` and restart, twice: nothing lost or doubled, and it goes on (G1, G2, G5)."""
        server = self.server(tmp_path)
        async with self.ticking(tmp_path) as ticks:
            if ticks.broker.capabilities.durability == "volatile":
                pytest.skip("capabilities.durability is declared volatile")
            await ticks.started()
            for _ in range(2):
                for _ in range(3):
                    await ticks.tick(*NAMES)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                await ticks.tick(*NAMES)
                await ticks.all_seen(*NAMES, seconds=RESUMES)


class StoreServerSuite(DeliverySuite):
    """Besides, with a store's server that fails."""

    def store_server(self, tmp_path: Path) -> Server:
        """The server behind `store`."""
        raise NotImplementedError

    async def test_the_stores_server_is_killed_under_load(self, tmp_path: Path) -> None:
        """``kill -9`` and restart, twice: nothing lost or doubled, and it goes on (G1, G2, G5)."""
        server = self.store_server(tmp_path)
        async with self.ticking(tmp_path) as ticks:
            await ticks.started()
            for _ in range(2):
                for _ in range(3):
                    await ticks.tick(*NAMES)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                await ticks.tick(*NAMES)
                await ticks.all_seen(*NAMES, seconds=RESUMES)


def _letters(ticks: Ticks) -> list[dict[str, Any]]:
    said = ticks.run("dead", "list", "counter", "--json")
    assert said.returncode == 0, said.stderr
    letters: list[dict[str, Any]] = json.loads(said.stdout)["letters"]
    return letters


def _lag(ticks: Ticks) -> int:
    said = ticks.run("lag", "counter", "--json")
    assert said.returncode == 0, said.stderr
    partitions = json.loads(said.stdout)["services"][0]["partitions"]
    return sum(each["lag"] for each in partitions if each["stream"] == ticks.stream)


async def _tells(ticks: Ticks, path: str, status: int) -> bool:
    try:
        return (await ticks.admin(path)).status_code == status
    except httpx.TransportError:
        return False


def _exists(path: Path) -> Any:
    async def exists() -> bool:
        return path.exists()

    return exists
