"""The file under the embedded broker and the SQLite store: damage, full disks, crashes, turns."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import apsw
import pytest

from oyez.errors import (
    ConstraintViolated,
    StoreCorrupt,
    StoreMissing,
    StoreOutdated,
    StoreRefused,
    StoreUnavailable,
    TransactionExpired,
)
from oyez.sqlite import SqliteFile, refuse_network_file_system, turns

SCHEMA = "create table t (id integer primary key, data blob)"
DEADLINE = 20.0
NOBODY = 65_534


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteFile]:
    file = SqliteFile(path, steps=(SCHEMA,))
    try:
        await file.open()
        async with asyncio.timeout(DEADLINE):
            yield file
    finally:
        await file.close()


def insert(number: int, size: int = 1):
    def job(connection: apsw.Connection) -> int:
        connection.execute("insert into t values (?, zeroblob(?))", (number, size))
        return number

    return job


def insert_or_roll_back(connection: apsw.Connection) -> None:
    """SQLite gives up the whole transaction here, as it does on an I/O error."""
    connection.execute("insert or rollback into t values (1, null), (1, null)")


async def numbers(file: SqliteFile) -> list[int]:
    return await file.read(lambda c: [n for (n,) in c.execute("select id from t order by id")])


@contextmanager
def child(
    program: str, *arguments: str, temporary: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": temporary} if temporary else None,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class TestNetworkFileSystems:
    LINES = (
        "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n"
        "30 22 0:30 / /mnt rw,relatime shared:1 - nfs4 server:/x rw\n"
        "31 30 0:31 / /mnt/local rw - xfs /dev/vdb rw\n"
        "32 22 0:32 / /media/with\\040space rw - cifs //server/x rw\n"
        "33 22 0:33 / /media/\u00fcber rw - fuse.sshfs host: rw\n"
        "34 22 0:34 / /over rw - ext4 /dev/vdc rw\n"
        "35 34 0:35 / /over rw - 9p share rw\n"
    )

    @pytest.mark.parametrize(
        ("folder", "kind"),
        [
            ("/mnt", "nfs4"),
            ("/mnt/deep/er", "nfs4"),
            ("/media/with space/a", "cifs"),
            ("/media/\u00fcber", "fuse.sshfs"),
            ("/over/a", "9p"),
        ],
    )
    def test_are_refused(self, tmp_path: Path, folder: str, kind: str) -> None:
        mounts = tmp_path / "mountinfo"
        mounts.write_bytes(self.LINES.encode() + b"36 22 0:36 / /\xff rw - ext4 x rw\n")
        with pytest.raises(StoreRefused, match=rf"network file system \({kind}\).*local folder"):
            refuse_network_file_system(Path(folder), str(mounts))

    @pytest.mark.parametrize("folder", ["/", "/srv", "/mnt/local/a", "/mntx", "/media"])
    def test_local_ones_are_not(self, tmp_path: Path, folder: str) -> None:
        mounts = tmp_path / "mountinfo"
        mounts.write_text(self.LINES)
        refuse_network_file_system(Path(folder), str(mounts))

    def test_a_machine_that_does_not_say_is_trusted(self, tmp_path: Path) -> None:
        refuse_network_file_system(tmp_path, str(tmp_path / "nothing"))


class TestWhenSqliteGivesUpATransaction:
    """Then what others wrote into the same commit is gone too, and each of them must hear so."""

    async def test_everyone_in_the_group_hears_of_it(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "a.db") as file:
            results = await asyncio.gather(
                file.write(insert(10)),
                file.write(insert(11)),
                file.write(insert_or_roll_back),
                file.write(insert(12)),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [ConstraintViolated] * 3 + [int]
            assert await numbers(file) == [12]

    async def test_also_when_it_happens_within_a_turn(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "a.db") as file:
            first, second = file.turn(), file.turn()
            await first.run(insert(10))
            waiting = asyncio.ensure_future(second.run(insert(11)))
            await asyncio.sleep(0)
            committing = asyncio.ensure_future(first.finish(insert(12)))
            await waiting
            with pytest.raises(ConstraintViolated):
                await second.run(insert_or_roll_back)
            with pytest.raises(ConstraintViolated):
                await second.finish(insert(13))
            await second.cancel()
            with pytest.raises(ConstraintViolated):
                await committing
            assert await numbers(file) == []
            assert await file.write(insert(14)) == 14
            assert await numbers(file) == [14]

    async def test_also_when_a_repeated_job_meets_it(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "a.db") as file:
            turn = file.turn()
            await turn.run(insert(10))
            met = asyncio.Event()
            loop = asyncio.get_running_loop()

            def job(connection: apsw.Connection) -> None:
                loop.call_soon_threadsafe(met.set)
                insert_or_roll_back(connection)

            stop = file.every(0.01, job)
            await met.wait()
            stop()
            with pytest.raises((ConstraintViolated, StoreUnavailable)):
                await turn.finish(insert(11))
            await turn.cancel()
            assert await numbers(file) == []
            assert await file.write(insert(12)) == 12


class TestFullDisk:
    async def _fill(self, file: SqliteFile, size: int) -> None:
        results = await asyncio.gather(
            *(file.write(insert(n)) for n in range(20)),
            file.write(insert(100, size)),
            *(file.write(insert(n)) for n in range(20, 40)),
            return_exceptions=True,
        )
        assert isinstance(results[20], StoreUnavailable)
        assert "a.db" in str(results[20])
        assert "disk full" in str(results[20])
        kept = [result for result in results if isinstance(result, int)]
        assert await numbers(file) == sorted(kept)
        assert all(isinstance(r, StoreUnavailable) for r in results if r not in kept)

    async def test_a_limit_on_pages(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "a.db") as file:
            await file.write(lambda c: c.pragma("max_page_count", 20))
            await self._fill(file, 1_000_000)
            await file.write(lambda c: c.pragma("max_page_count", 1_000_000))
            await file.write(insert(200, 1_000_000))
            assert 200 in await numbers(file)

    async def test_a_file_system_without_room(self, tmp_path: Path) -> None:
        mount = shutil.which("mount")
        made = mount and subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
        )
        if not made or made.returncode:
            pytest.skip("no permission to mount a small tmpfs")
        try:
            async with opened(tmp_path / "a.db") as file:
                await self._fill(file, 2_000_000)
                await file.write(insert(200))
                assert 200 in await numbers(file)
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)


class TestDamage:
    async def _make(self, path: Path) -> bytes:
        async with opened(path) as file:
            for start in range(0, 2_000, 500):
                await file.write(
                    lambda c, start=start: c.executemany(
                        "insert into t values (?, ?)",
                        [(n, b"x" * 50) for n in range(start, start + 500)],
                    )
                )
        content = path.read_bytes()
        assert len(content) > 80_000
        return content

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"\xff" * 16 + content[16:],
            lambda content: content[: 4096 * 9] + b"\xff" * 64 + content[4096 * 9 + 64 :],
            lambda content: content[: 4096 * 9] + bytes(4096) + content[4096 * 10 :],
            lambda content: content[: len(content) // 2],
            lambda content: content[:100],
            lambda content: b"",
            lambda content: b"not a database at all\n" * 400,
        ],
        ids=["header", "page", "zeroed", "half", "stub", "empty", "text"],
    )
    async def test_is_found_and_refused_and_left_as_it_is(self, tmp_path: Path, damage) -> None:
        path = tmp_path / "a.db"
        damaged = damage(await self._make(path))
        path.write_bytes(damaged)
        for _ in range(2):
            with pytest.raises(StoreCorrupt, match=r"a\.db is damaged .*(backup|recover)"):
                async with opened(path):
                    pass
            assert path.read_bytes() == damaged

    async def test_a_restored_file_opens_again(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        content = await self._make(path)
        file = SqliteFile(path, steps=(SCHEMA,))
        path.write_bytes(content[:100])
        with pytest.raises(StoreCorrupt):
            await file.open()
        path.write_bytes(content)
        await file.open()
        assert await file.write(insert(5_000)) == 5_000
        await file.close()

    async def test_a_removed_file_is_made_anew(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        await self._make(path)
        path.unlink()
        async with opened(path) as file:
            assert await numbers(file) == []

    async def test_a_newer_schema_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        await self._make(path)
        connection = apsw.Connection(str(path))
        connection.pragma("user_version", 99)
        connection.close()
        with pytest.raises(StoreRefused, match=r"a\.db.*schema 99.*upgrade"):
            async with opened(path):
                pass


class TestPermissions:
    PROGRAM = """
import asyncio, encodings.latin_1, encodings.unicode_escape, os, sys
from pathlib import Path
from oyez.sqlite import SqliteFile

if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    asyncio.run(SqliteFile(Path(sys.argv[1]), steps=("create table t (a)",)).open())
except Exception as error:
    print(type(error).__name__, error)
"""

    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix="oyez-test-"))
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)
        shutil.rmtree(folder)

    def _said(self, path: Path) -> str:
        command = [sys.executable, "-c", self.PROGRAM, str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE).stdout

    def test_a_folder_that_is_not_writable(self, folder: Path) -> None:
        folder.chmod(0o555)
        for path in (folder / "a.db", folder / "deeper" / "a.db"):
            said = self._said(path)
            assert said.startswith("StoreUnavailable")
            assert str(folder) in said
            assert "must be writable by user" in said

    async def test_a_file_that_is_not_writable(self, folder: Path) -> None:
        async with opened(folder / "a.db"):
            pass
        (folder / "a.db.lock").chmod(0o666)
        (folder / "a.db").chmod(0o444)
        folder.chmod(0o777)
        said = self._said(folder / "a.db")
        assert said.startswith("StoreUnavailable")
        assert "a.db" in said


class TestTurns:
    async def test_one_that_holds_up_others_too_long_is_rolled_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(turns, "HOLD", 0.05)
        async with opened(tmp_path / "a.db") as file:
            turn = file.turn()
            await turn.run(insert(1))
            assert await file.write(insert(2)) == 2
            with pytest.raises(TransactionExpired, match="do slow work outside"):
                await turn.run(insert(3))
            with pytest.raises(TransactionExpired):
                await turn.finish(insert(3))
            await turn.cancel()
            assert await numbers(file) == [2]

    async def test_turns_and_writes_share_commits_in_their_order(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "a.db") as file:
            order: list[int] = []

            async def interactive(number: int) -> None:
                turn = file.turn()
                await turn.run(lambda c: order.append(number))
                await turn.finish(insert(number))

            def job(number: int):
                def run(connection: apsw.Connection) -> None:
                    order.append(number)
                    insert(number)(connection)

                return run

            work = [
                interactive(number) if number % 3 == 0 else file.write(job(number))
                for number in range(60)
            ]
            await asyncio.gather(*work)
            assert order == list(range(60))
            assert await numbers(file) == list(range(60))

    async def test_a_job_that_raises_is_undone_alone(self, tmp_path: Path) -> None:
        def bad(connection: apsw.Connection) -> None:
            insert(50)(connection)
            raise LookupError("mine")

        async with opened(tmp_path / "a.db") as file:
            results = await asyncio.gather(
                file.write(insert(1)), file.write(bad), file.write(insert(2)),
                return_exceptions=True,
            )  # fmt: skip
            assert [type(result) for result in results] == [int, LookupError, int]
            assert await numbers(file) == [1, 2]


class TestProcesses:
    HOLDER = """
import asyncio, sys
from pathlib import Path
from oyez.sqlite import SqliteFile

async def main():
    file = SqliteFile(Path(sys.argv[1]), steps=("",))
    await file.open()
    turn = file.turn()
    await turn.run(lambda c: c.execute("insert into t values (1, null)"))
    print("held", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    RINGER = """
import asyncio, sys
from pathlib import Path
from oyez.sqlite import SqliteFile

async def main():
    file = SqliteFile(Path(sys.argv[1]), steps=("",))
    await file.open()
    for line in sys.stdin:
        await file.write(lambda c: c.execute("delete from t"), ring=line == "ring\\n")
        print("written", flush=True)

asyncio.run(main())
"""

    async def test_a_crash_leaves_no_lock_and_no_half_transaction(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        async with opened(path) as file:
            with child(self.HOLDER, str(path)) as holder:
                assert holder.stdout is not None
                assert holder.stdout.readline() == "held\n"
                writing = asyncio.ensure_future(file.write(insert(2)))
                for _ in range(100):
                    await asyncio.sleep(0)
                assert not writing.done()
                holder.kill()
                assert await writing == 2
            assert await numbers(file) == [2]

    async def test_the_doorbell_rings_in_other_processes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        async with opened(path) as file:
            rung = asyncio.Event()
            file.on_ring(rung.set)
            with child(self.RINGER, str(path)) as ringer:
                assert ringer.stdin is not None
                assert ringer.stdout is not None
                for word in ("quiet", "ring", "ring"):
                    ringer.stdin.write(f"{word}\n")
                    ringer.stdin.flush()
                    assert await asyncio.to_thread(ringer.stdout.readline) == "written\n"
                    if word == "ring":
                        await rung.wait()
                    assert rung.is_set() == (word == "ring")
                    rung.clear()

    async def test_a_quiet_write_rings_elsewhere_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        async with opened(path) as file, opened(path) as other:
            here, there = asyncio.Event(), asyncio.Event()
            file.on_ring(here.set)
            other.on_ring(there.set)
            await file.write(insert(1), ring=True, quiet=True)
            await there.wait()
            turn = file.turn()
            await turn.run(insert(2))
            there.clear()
            await turn.finish(lambda connection: None, ring=True, quiet=True)
            await there.wait()
            assert not here.is_set()
            await file.write(insert(3), ring=True)
            assert here.is_set()

    @pytest.mark.parametrize("beside", [True, False])
    async def test_it_rings_in_a_process_that_shares_no_more_than_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
    ) -> None:
        """As in another container: under another path, with another temporary folder.

        Where no socket can be beside the file, a temporary folder that they share will do.
        """
        for name in ("volume", "mine", "theirs"):
            (tmp_path / name).mkdir()
        (tmp_path / "mount").symlink_to("volume")
        theirs = None
        if beside:
            monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "mine"))
            theirs = str(tmp_path / "theirs")
        else:
            (tmp_path / "volume" / "a.db.bell").write_text("")
        async with opened(tmp_path / "volume" / "a.db") as file:
            rung = asyncio.Event()
            file.on_ring(rung.set)
            mounted = str(tmp_path / "mount" / "a.db")
            with child(self.RINGER, mounted, temporary=theirs) as ringer:
                assert ringer.stdin is not None
                ringer.stdin.write("ring\n")
                ringer.stdin.flush()
                await rung.wait()

    async def test_its_folder_is_for_this_user_and_goes_with_the_last_listener(
        self, tmp_path: Path
    ) -> None:
        folder = tmp_path / "a.db.bell"
        async with opened(tmp_path / "a.db"):
            folder.chmod(0o777)  # as who mounts a volume may do it
            async with opened(tmp_path / "a.db"):
                assert folder.stat().st_mode & 0o777 == 0o700
                assert len([*folder.iterdir()]) == 2
            assert len([*folder.iterdir()]) == 1
        assert not folder.exists()

    async def test_without_any_folder_it_only_loses_the_doorbell(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.db.bell").write_text("")
        long = tmp_path / ("long" * 30)
        long.mkdir()
        for folder in (tmp_path / "missing", long):
            monkeypatch.setattr(tempfile, "tempdir", str(folder))
            async with opened(tmp_path / "a.db") as file:
                heard = asyncio.Event()
                file.on_ring(heard.set)
                await file.write(lambda c: None, ring=True)
                assert heard.is_set()

    async def test_a_folder_that_is_removed_fails_no_write(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "a.db") as file:
            assert await file.write(insert(1), ring=True) == 1
            shutil.rmtree(tmp_path / "a.db.bell")
            assert await file.write(insert(2), ring=True) == 2
            assert await numbers(file) == [1, 2]

    async def test_a_folder_of_someone_else_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.db.bell").write_text("")
        with tempfile.TemporaryDirectory() as short:  # a socket's path has a limit
            monkeypatch.setattr(tempfile, "tempdir", short)
            async with opened(tmp_path / "a.db"):
                (folder,) = Path(short).glob(f"oyez-{os.getuid()}-*")
                folder.chmod(0o777)
                with pytest.raises(StoreRefused, match="belongs to another user"):
                    async with opened(tmp_path / "a.db"):
                        pass


class TestOpeningAndClosing:
    async def test_is_safe_in_any_order(self, tmp_path: Path) -> None:
        file = SqliteFile(tmp_path / "deep" / "a.db", steps=(SCHEMA,))
        await file.close()
        with pytest.raises(StoreUnavailable):
            await file.write(insert(1))
        with pytest.raises(StoreUnavailable):
            await file.read(lambda c: None)
        await file.open()
        await file.open()
        writing = asyncio.ensure_future(file.write(insert(1)))
        await asyncio.sleep(0)
        await file.close()
        assert await writing == 1
        await file.close()
        with pytest.raises(StoreUnavailable):
            await file.write(insert(2))
        await file.open()
        assert await numbers(file) == [1]
        await file.close()


# -- the schema, step by step ----------------------------------------------------------------------

STEPS = (SCHEMA, "alter table t add column more text not null default 'none'")
_UPGRADE = f"""
import asyncio, sys
from pathlib import Path
from oyez.sqlite import SqliteFile
sys.stdin.read()
asyncio.run(SqliteFile(Path(sys.argv[1]), steps={STEPS!r}).open())
"""


async def test_an_older_file_is_upgraded_once_by_processes_that_start_together(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as file:
        await file.write(insert(1))
    command = (sys.executable, "-c", _UPGRADE, str(path))
    started = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(4)]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    assert [await asyncio.to_thread(process.wait, DEADLINE) for process in started] == [0] * 4
    file = SqliteFile(path, steps=STEPS)
    await file.open()
    try:
        assert await file.read(lambda c: list(c.execute("select id, more from t"))) == [(1, "none")]
        assert await file.read(lambda c: c.pragma("user_version")) == 2
    finally:
        await file.close()
    with pytest.raises(StoreRefused, match="newer Oyez"):
        async with opened(path):
            pass


async def test_who_only_looks_upgrades_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as file:
        await file.write(insert(1))
    with pytest.raises(StoreOutdated, match="older Oyez"):
        await SqliteFile(path, steps=STEPS).open(upgrade=False)
    async with opened(path) as file:
        assert await numbers(file) == [1]


async def test_who_only_looks_makes_no_tables_in_a_file_without_any(tmp_path: Path) -> None:
    empty, other = tmp_path / "empty.db", tmp_path / "other.db"
    empty.touch()
    connection = apsw.Connection(str(other))
    connection.execute("create table theirs (n integer)")
    connection.close()
    for path, told in ((empty, "is empty"), (other, "has no tables of Oyez yet")):
        with pytest.raises(StoreMissing, match=told):
            await SqliteFile(path, steps=STEPS).open(upgrade=False)
    assert empty.stat().st_size == 0
    connection = apsw.Connection(str(other))
    assert connection.execute("select name from sqlite_schema").fetchall() == [("theirs",)]
    connection.close()


async def test_an_upgrade_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as file:
        await file.write(insert(1))
    with pytest.raises(StoreRefused, match="nonsense"):
        await SqliteFile(path, steps=(*STEPS, "nonsense")).open()
    async with opened(path) as file:
        assert await numbers(file) == [1]
