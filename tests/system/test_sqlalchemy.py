"""A SQLAlchemy session is part of Oyez's transaction: on both stores, in `async def` and `def`."""

from __future__ import annotations

import asyncio
import enum
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import (
    JSON,
    DateTime,
    Enum,
    ForeignKey,
    LargeBinary,
    Numeric,
    create_mock_engine,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    selectinload,
)
from sqlalchemy.orm.exc import StaleDataError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from oyez import Event, Retry, Service, Transaction
from oyez.ambient import SystemAmbient
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import DeclarationError, StoreUnavailable, TransactionClosed
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import EventDead, EventRetried, Signals
from oyez.sqlalchemy import include_name, session
from oyez.stores import connect
from oyez.testing import System, VirtualAmbient, running
from oyez.transaction import Announcer, Origin
from servers import server

pytestmark = pytest.mark.filterwarnings("ignore:.*support Decimal objects natively")

NO_RETRY = Retry(attempts=1)
AT_ONCE = Retry(attempts=3, first=0.0)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Model(DeclarativeBase):
    pass


class Order(Model):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(server_default="new")
    lines: Mapped[list[Line]] = relationship(back_populates="order", order_by="Line.id")


class Line(Model):
    __tablename__ = "line"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    sku: Mapped[str]
    order: Mapped[Order] = relationship(back_populates="lines")


class Account(Model):
    __tablename__ = "account"

    name: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's way


class Everything(Model):
    __tablename__ = "everything"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None]
    number: Mapped[float | None]
    money: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))
    flag: Mapped[bool | None]
    day: Mapped[date | None]
    clock: Mapped[time | None]
    moment: Mapped[datetime | None]
    instant: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    span: Mapped[timedelta | None]
    uid: Mapped[uuid.UUID | None]
    tree: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    document: Mapped[list[int] | None] = mapped_column(
        JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    )
    color: Mapped[Color | None]
    plain_color: Mapped[Color | None] = mapped_column(Enum(Color, native_enum=False, length=10))
    blob: Mapped[bytes | None] = mapped_column(LargeBinary)


class Placed(Event, type="sa.placed", key="name"):
    name: str


class Done(Event, type="sa.done", key="name"):
    name: str
    n: int = 0


def schema(dialect: str) -> str:
    """The models as SQL, for a migration."""
    found: list[str] = []
    engine = create_mock_engine(
        f"{dialect}://",
        lambda statement, *_: found.append(str(statement.compile(dialect=engine.dialect))),
    )
    Model.metadata.create_all(engine, checkfirst=False)
    return ";\n".join(found)


# -- where it runs ---------------------------------------------------------------------------------


Start = Callable[..., AbstractAsyncContextManager[System]]


@pytest.fixture(params=["inline", "sqlite", "postgresql"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    """Starts a service: in the harness, and on the real stores with threads for plain `def`."""
    kind: str = request.param
    migrations = tmp_path / "migrations"
    migrations.mkdir()
    dialect = "postgresql" if kind == "postgresql" else "sqlite"
    (migrations / "001_models.sql").write_text(schema(dialect))
    url = "sqlite:service.db"
    if kind == "postgresql":
        url = f"{server('postgresql').url}?schema=sa_{uuid.uuid4().hex[:12]}"

    @asynccontextmanager
    async def inline(service: Service) -> AsyncIterator[System]:
        service.migrations = "migrations"
        async with running(service, root=tmp_path) as system:
            yield system

    @asynccontextmanager
    async def threads(service: Service, partitions: int = 4) -> AsyncIterator[System]:
        service.migrations = "migrations"
        ambient = SystemAmbient()
        broker = MemoryBroker(ambient, partitions=partitions)
        signals = Signals()
        system = System("test", ambient, broker)  # type: ignore[arg-type]
        signals.listen(system.signals.append)
        process = ServiceProcess(
            service,
            ProcessSettings(system="test", partitions=partitions, root=tmp_path),
            broker=broker,
            store=connect(url, ambient, root=tmp_path),
            ambient=ambient,
            signals=signals,
        )
        await process.start()
        system.processes[service.name] = process
        try:
            yield system
        finally:
            await process.drain()

    return inline if kind == "inline" else threads


async def handle(system: System, *names: str) -> None:
    for name in names:
        await system.publish(Placed(name=name))
    await system.settled()


def errors(system: System) -> list[str]:
    """What went wrong in handlers."""
    return [
        signal.reason if isinstance(signal, EventDead) else signal.error
        for signal in system.signals
        if isinstance(signal, EventDead | EventRetried)
    ]


async def dead(system: System) -> str:
    """The one dead letter's reason and traceback."""
    (letter,) = await system.fetch("shop", "select reason, traceback from oyez_dead")
    return f"{letter['reason']}\n{letter['traceback']}"


async def names(system: System) -> list[str]:
    rows = await system.fetch("shop", "select name from orders order by name")
    return [row["name"] for row in rows]


# -- one transaction -------------------------------------------------------------------------------


async def test_what_the_session_writes_commits_with_the_event(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed)
    async def place(event: Placed, db: AsyncSession) -> Done:
        order = Order(name=event.name)
        db.add(order)
        await db.flush()
        assert order.state == "new"
        return Done(name=event.name, n=order.id)

    async with start(service) as system:
        await handle(system, "a", "b", "c")
        assert errors(system) == []
        assert await names(system) == ["a", "b", "c"]
        assert sorted(done.n for done in system.announced(Done)) == [1, 2, 3]


async def test_in_a_plain_def_as_well(start: Start) -> None:
    service = Service("shop")
    loop = threading.get_ident()
    elsewhere: set[bool] = set()

    @service.on(Placed)
    def place(event: Placed, db: Session) -> Done:
        elsewhere.add(threading.get_ident() != loop)
        order = Order(name=event.name, lines=[Line(sku="bell"), Line(sku="horn")])
        db.add(order)
        db.flush()
        db.expire_all()
        assert [line.sku for line in order.lines] == ["bell", "horn"]  # loaded here, when asked
        return Done(name=event.name, n=order.id)

    async with start(service) as system:
        await handle(system, *"abcdef")
        assert errors(system) == []
        assert await names(system) == list("abcdef")
        assert len(system.announced(Done)) == 6
        assert len(elsewhere) == 1


async def test_an_exception_undoes_it_all(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed, retry=NO_RETRY)
    async def place(event: Placed, db: AsyncSession, tx: Transaction) -> Done:
        db.add(Order(name=event.name))
        await db.flush()
        tx.publish(Done(name="early"))
        if event.name == "bad":
            raise ValueError("no")
        return Done(name=event.name)

    @service.on(Placed, retry=NO_RETRY)
    def place_too(event: Placed, db: Session) -> Done:
        db.add(Order(name=f"{event.name}-too"))
        db.flush()
        if event.name == "bad":
            raise ValueError("no")
        return Done(name=f"{event.name}-too")

    async with start(service) as system:
        await handle(system, "good", "bad", "fine")
        assert await names(system) == ["fine", "fine-too", "good", "good-too"]
        announced = [done.name for done in system.announced(Done)]
        assert sorted(announced) == [
            "early", "early", "fine", "fine-too", "good", "good-too",
        ]  # fmt: skip
        assert len(await system.dead("shop")) == 2


async def test_a_duplicate_changes_nothing(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed)
    async def place(event: Placed, db: AsyncSession) -> None:
        db.add(Order(name=event.name))

    async with start(service) as system:
        await handle(system, "a")
        (record,) = [record for log in system.broker.logs["test.outside"] for record in log]
        await system.publish_raw(record.headers, record.data, key=record.key)
        await system.settled()
        assert errors(system) == []
        assert await names(system) == ["a"]


async def test_two_copies_at_once_have_one_effect(start: Start) -> None:
    """Copies on two partitions get past the inbox together; one of them meets the other's row."""
    service = Service("shop")
    entered: list[str] = []
    both = asyncio.Event()

    @service.on(Placed, retry=NO_RETRY)
    async def place(event: Placed, db: AsyncSession) -> Done:
        entered.append(event.name)
        if len(entered) == 2:
            both.set()
        await both.wait()
        db.add(Order(name=event.name))
        return Done(name=event.name)

    async with start(service) as system:
        row = Announcer("test", "outside", system.ambient).announce(
            Placed(name="a"), Origin(), "2026-11-24T12:00:00Z", 0.0, None
        )
        for key in ("a", "c"):  # of different partitions
            await system.publish_raw(row.headers, row.data, key=key)
        assert sum(bool(log) for log in system.broker.logs["test.outside"]) == 2
        while len(system.announced(Done)) < 1 or len(entered) < 3:
            await asyncio.sleep(0.001)
        if isinstance(system.ambient, VirtualAmbient):
            await system.advance(1.0)
        await system.settled()
        assert await names(system) == ["a"]
        assert len(system.announced(Done)) == 1
        assert await system.dead("shop") == []


async def test_a_retry_starts_from_nothing(start: Start) -> None:
    service = Service("shop")
    attempts: list[str] = []

    @service.on(Placed, retry=AT_ONCE)
    def place(event: Placed, db: Session) -> None:
        attempts.append(event.name)
        assert not list(db)
        db.add(Order(name=event.name))
        db.flush()
        if len(attempts) < 3:
            raise ConnectionError("not now")

    async with start(service) as system:
        await handle(system, "a")
        assert await names(system) == ["a"]
        assert len(attempts) == 3


async def test_a_batch_of_many_shares_a_transaction_and_no_session(start: Start) -> None:
    """Each call has a session of its own, and sees what the calls before it flushed."""
    service = Service("shop")
    sessions: set[int] = set()
    kept: list[Any] = []

    @service.on(Placed)
    async def place(event: Placed, db: AsyncSession) -> Done:
        assert not list(db)
        kept.append(db)  # so that no two have the same address
        sessions.add(id(db))
        before = await db.scalar(select(func.count()).select_from(Order))
        db.add(Order(name=event.name))
        return Done(name=event.name, n=before or 0)

    async with start(service) as system:
        await handle(system, *(f"{number:03}" for number in range(60)))
        assert errors(system) == []
        assert len(await names(system)) == 60
        assert len(sessions) == len(kept) == 60
        assert sorted(done.n for done in system.announced(Done)) == list(range(60))
        with pytest.raises(DeclarationError, match="ended with the handler"):
            await kept[0].execute(select(Order))


async def test_batch_handlers_and_generators(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed, batch=True)
    async def place(events: list[Placed], db: AsyncSession) -> list[Done]:
        db.add_all([Order(name=event.name) for event in events])
        return [Done(name=event.name) for event in events]

    @service.on(Placed)
    async def stream(event: Placed, db: AsyncSession) -> AsyncIterator[Done]:
        db.add(Order(name=f"{event.name}-stream"))
        yield Done(name=f"{event.name}-stream")
        await db.flush()
        yield Done(name=f"{event.name}-stream-2")

    @service.on(Placed)
    def plain_stream(event: Placed, db: Session) -> Iterator[Done]:
        db.add(Order(name=f"{event.name}-plain"))
        yield Done(name=f"{event.name}-plain")

    async with start(service) as system:
        await handle(system, "a", "b")
        assert errors(system) == []
        rows = ["a", "a-plain", "a-stream", "b", "b-plain", "b-stream"]
        assert await names(system) == rows
        assert len(system.announced(Done)) == 8


async def test_queued_writes_and_statements_keep_their_order(start: Start) -> None:
    service = Service("shop")
    sql = "update orders set state = state || :letter where name = :name"

    @service.on(Placed)
    async def place(event: Placed, db: AsyncSession, tx: Transaction) -> None:
        db.add(Order(name=event.name, state=""))
        await db.flush()
        tx.execute(sql, letter="a", name=event.name)
        await db.execute(update(Order).values(state=Order.state + "b"))
        tx.execute(sql, letter="c", name=event.name)
        tx.execute(sql, letter="d", name=event.name)
        assert await db.scalar(select(Order.state), execution_options={}) == "abcd"
        await db.execute(update(Order).values(state=Order.state + "e"))
        (row,) = await tx.fetch("select state from orders where name = :name", name=event.name)
        assert row["state"] == "abcde"
        tx.execute(sql, letter="f", name=event.name)

    async with start(service) as system:
        await handle(system, "x")
        assert errors(system) == []
        assert await system.fetch("shop", "select state from orders") == [{"state": "abcdef"}]


async def test_a_block_of_the_http_side(start: Start) -> None:
    async def place(request: Request) -> JSONResponse:
        name = request.path_params["name"]
        async with service.transaction() as tx, session(tx) as db:
            order = Order(name=name)
            db.add(order)
            await db.flush()
            tx.publish(Done(name=name, n=order.id))
            if name == "bad":
                return JSONResponse({}, status_code=1 // 0)
            db.add(Line(order=order, sku="bell"))
        return JSONResponse({"id": order.id})

    http = Starlette(routes=[Route("/{name}", place, methods=["POST"])])
    service = Service("shop", http=http, publishes=(Done,))
    async with start(service) as system:
        async with system.http("shop") as client:
            assert (await client.post("/good")).json() == {"id": 1}
            with pytest.raises(ZeroDivisionError):
                await client.post("/bad")
        await system.settled()
        assert await names(system) == ["good"]
        assert await system.fetch("shop", "select sku from line") == [{"sku": "bell"}]
        assert [done.name for done in system.announced(Done)] == ["good"]


# -- who commits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["commit", "rollback", "close", "reset", "invalidate"])
async def test_ending_the_transaction_is_refused(start: Start, what: str) -> None:
    service = Service("shop")

    @service.on(Placed, retry=NO_RETRY)
    async def place(event: Placed, db: AsyncSession) -> None:
        db.add(Order(name=event.name))
        await db.flush()
        await getattr(db, what)()

    @service.on(Placed, retry=NO_RETRY)
    def place_too(event: Placed, db: Session) -> None:
        db.add(Order(name=event.name))
        getattr(db, what)()

    async with start(service) as system:
        await handle(system, "a")
        letters = await system.dead("shop")
        assert len(letters) == 2
        for letter in letters:
            assert f"{what}() is refused" in letter["reason"]
        assert await names(system) == []


async def test_so_it_is_by_other_ways(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed, retry=NO_RETRY)
    async def begin(event: Placed, db: AsyncSession) -> None:
        async with db.begin():
            db.add(Order(name=event.name))

    @service.on(Placed, retry=NO_RETRY)
    async def connection(event: Placed, db: AsyncSession) -> None:
        db.add(Order(name=event.name))
        await (await db.connection()).commit()

    @service.on(Placed, retry=NO_RETRY)
    def level(event: Placed, db: Session) -> None:
        db.add(Order(name=event.name))
        db.connection(execution_options={"isolation_level": "SERIALIZABLE"})

    async with start(service) as system:
        await handle(system, "a")
        reasons = {letter["reason"] for letter in await system.dead("shop")}
        assert len(reasons) == 3
        for reason in reasons:
            assert "Oyez began this session's transaction" in reason
        assert await names(system) == []


async def test_a_nested_part_may_fail(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed)
    async def place(event: Placed, db: AsyncSession, tx: Transaction) -> Done:
        db.add(Order(name=event.name))
        async with db.begin_nested():
            db.add(Order(name=f"{event.name}-nested"))
            tx.publish(Done(name="kept"))
        with pytest.raises(IntegrityError):  # noqa: PT012 - the whole block is undone
            async with db.begin_nested():
                tx.publish(Done(name="undone"))
                tx.execute("update orders set state = 'undone'")
                await db.flush()
                tx.execute("update orders set state = 'undone too'")
                db.add(Order(name=event.name))
                await db.flush()
        found = list(await db.scalars(select(Order.name).order_by(Order.name)))
        db.add(Order(name=f"{event.name}-after"))
        await db.begin_nested()  # left open: it is kept
        db.add(Order(name=f"{event.name}-open"))
        return Done(name=",".join(found))

    @service.on(Placed)
    def place_too(event: Placed, db: Session) -> None:
        nested = db.begin_nested()
        db.add(Order(name=f"{event.name}-too"))
        db.flush()
        nested.rollback()
        with db.begin_nested():
            db.add(Order(name=f"{event.name}-kept"))

    async with start(service) as system:
        await handle(system, "a")
        assert errors(system) == []
        assert await names(system) == ["a", "a-after", "a-kept", "a-nested", "a-open"]
        assert await system.fetch("shop", "select distinct state from orders") == [{"state": "new"}]
        assert [done.name for done in system.announced(Done)] == ["kept", "a,a-nested"]


async def test_a_violated_constraint_is_sqlalchemys_own_error(start: Start) -> None:
    service = Service("shop")
    seen: list[IntegrityError] = []
    secret = f"{uuid.uuid4()}"

    @service.on(Placed, retry=Retry(attempts=2, first=0.0, on=(IntegrityError,)))
    async def place(event: Placed, db: AsyncSession) -> Done:
        db.add(Order(name=secret))
        await db.flush()
        try:
            await db.execute(insert(Order).values(name=secret))
        except IntegrityError as error:
            seen.append(error)
            raise
        return Done(name=event.name)

    async with start(service) as system:
        await handle(system, "a")
        assert len(seen) == 3  # in the batch, alone, once more
        reason = await dead(system)
        assert "IntegrityError" in reason
        assert secret not in reason
        assert await names(system) == []
        assert system.announced(Done) == []


@pytest.mark.parametrize("repair", [False, True])
async def test_a_failed_flush_that_is_swallowed_keeps_nothing(start: Start, repair: bool) -> None:
    service = Service("shop")

    @service.on(Placed, retry=NO_RETRY)
    async def place(event: Placed, db: AsyncSession) -> Done:
        db.add(Order(name=event.name))
        await db.flush()
        db.add(Order(name=event.name))
        with pytest.raises(IntegrityError):
            await db.flush()
        if repair:
            await db.rollback()
            db.add(Order(name="after"))
        return Done(name=event.name)

    async with start(service) as system:
        await handle(system, "a")
        assert "begin_nested" in await dead(system)
        assert await names(system) == []
        assert system.announced(Done) == []


async def test_sql_that_the_database_refuses(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed)
    async def place(event: Placed, db: AsyncSession) -> None:
        with pytest.raises(ProgrammingError):
            async with db.begin_nested():
                await db.execute(text("select * from no_such_table"))
        db.add(Order(name=event.name))

    async with start(service) as system:
        await handle(system, "a")
        assert errors(system) == []
        assert await names(system) == ["a"]


# -- what a session is used for --------------------------------------------------------------------


async def test_every_type_comes_back_as_it_was(start: Start) -> None:
    values: dict[str, Any] = {
        "text": "naïve :name ? $1 'quoted' \u2603",
        "number": 0.1,
        "money": Decimal("12345.67"),
        "flag": True,
        "day": date(2026, 11, 24),
        "clock": time(13, 5, 59, 123456),
        "moment": datetime(2026, 11, 24, 13, 5, 59, 123456),
        "span": timedelta(days=3, microseconds=5),
        "uid": uuid.UUID("01a3185c-5000-7064-b910-f7de9558867f"),
        "tree": {"a": [1, None, "x"], "b": {"c": True}},
        "document": [3, 1, 2],
        "color": Color.BLUE,
        "plain_color": Color.RED,
        "blob": bytes(range(256)),
    }
    instant = datetime(2026, 11, 24, 13, 5, 59, 123456, tzinfo=UTC)
    service = Service("shop")

    async def check(db: AsyncSession) -> None:
        for name, value in values.items():
            found = await db.scalar(
                select(getattr(Everything, name)).where(Everything.text == values["text"])
            )
            assert found == value, name
            assert type(found) is type(value) or isinstance(found, type(value)), name
        for name in set(values) - {"tree", "document"}:
            column = getattr(Everything, name)
            assert await db.scalar(select(Everything.id).where(column == values[name])) == 1, name

    @service.on(Placed)
    async def write(event: Placed, db: AsyncSession) -> None:
        db.add(Everything(**values, instant=instant))
        db.add(Everything())
        await db.flush()
        db.expire_all()
        await check(db)
        empty = await db.get_one(Everything, 2)
        assert all(getattr(empty, name) is None for name in values)
        back = await db.scalar(select(Everything.instant).where(Everything.id == 1))
        assert back is not None
        # SQLite has no time zones: SQLAlchemy leaves them out there.
        assert back.replace(tzinfo=UTC) == instant

    async with start(service) as system:
        await handle(system, "a")
        assert errors(system) == []
        process = system.processes["shop"].service
        async with process.transaction() as tx, session(tx) as db:
            await check(db)


async def test_bulk_statements(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed)
    async def work(event: Placed, db: AsyncSession) -> None:
        orders = [Order(name=f"{number:04}") for number in range(1500)]
        db.add_all(orders)
        await db.flush()
        assert len({order.id for order in orders}) == 1500  # the keys came back, in few statements
        first = await db.scalar(select(Order.name).where(Order.id == orders[0].id))
        assert first == "0000"
        rows = [{"name": f"x{number}"} for number in range(3)]
        ids = (
            await db.scalars(insert(Order).returning(Order.id, sort_by_parameter_order=True), rows)
        ).all()
        assert len(ids) == 3
        await db.execute(insert(Order), [{"name": f"y{number}"} for number in range(3)])
        await db.execute(update(Order), [{"id": key, "state": "moved"} for key in ids])
        moved = await db.scalars(
            select(Order.name).where(Order.state == "moved").order_by(Order.name)
        )
        assert list(moved) == ["x0", "x1", "x2"]
        changed = await db.execute(update(Order).where(Order.name.like("y%")).values(state="y"))
        assert changed.rowcount == 3  # type: ignore[attr-defined]
        deleted = await db.execute(delete(Order).where(Order.name < "1498"))
        assert deleted.rowcount == 1498  # type: ignore[attr-defined]

    async with start(service) as system:
        await handle(system, "a")
        assert errors(system) == []
        assert await names(system) == ["1498", "1499", "x0", "x1", "x2", "y0", "y1", "y2"]


async def test_relationships_are_loaded_ahead_in_async_def(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed)
    async def place(event: Placed, db: AsyncSession) -> None:
        db.add(Order(name=event.name, lines=[Line(sku="bell"), Line(sku="horn")]))
        await db.flush()
        db.expunge_all()
        order = await db.scalar(select(Order).options(selectinload(Order.lines)))
        assert order is not None
        assert [line.sku for line in order.lines] == ["bell", "horn"]
        await db.refresh(order, ["lines"])
        await db.delete(order.lines[0])
        async for name in await db.stream_scalars(select(Order.name)):
            assert name == event.name

    async with start(service) as system:
        await handle(system, "a")
        assert errors(system) == []
        assert await system.fetch("shop", "select sku from line") == [{"sku": "horn"}]


async def test_optimistic_locking(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed, retry=NO_RETRY)
    async def pay(event: Placed, db: AsyncSession) -> None:
        account = Account(name=event.name, cents=1)
        db.add(account)
        await db.flush()
        account.cents = 2
        await db.flush()
        assert account.version == 2
        await db.execute(text("update account set version = 7"))
        with pytest.raises(StaleDataError):  # noqa: PT012
            async with db.begin_nested():
                account.cents = 3
                await db.flush()
        await db.refresh(account)
        account.cents = 4
        await db.flush()
        await db.execute(text("update account set version = 70"))
        if event.name == "stale":
            account.cents = 5

    async with start(service) as system:
        await handle(system, "a", "stale")
        assert "StaleDataError" in await dead(system)
        rows = await system.fetch("shop", "select * from account")
        assert rows == [{"name": "a", "cents": 4, "version": 70}]


async def test_text_answers_with_columns_whatever_the_rows(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed)
    async def ask(event: Placed, db: AsyncSession) -> None:
        empty = await db.execute(text("select id, name from orders where id = :id"), {"id": 0})
        assert list(empty.keys()) == ["id", "name"]
        assert empty.all() == []
        twice = await db.execute(text("select 1 as n, 2 as n"))
        assert twice.one() == (1, 2)
        made = await db.execute(
            text("insert into orders (name) values (:a), (:b) returning name"),
            {"a": "':x'", "b": ":y"},
        )
        assert sorted(made.scalars()) == ["':x'", ":y"]
        none = await db.execute(text("update orders set state = 'z' where name = '\\:z'"))
        assert none.rowcount == 0  # type: ignore[attr-defined]

    async with start(service) as system:
        await handle(system, "a")
        assert errors(system) == []
        assert await names(system) == ["':x'", ":y"]


async def test_lanes_lose_no_update(start: Start) -> None:
    service = Service("shop")

    @service.on(Placed, retry=AT_ONCE)
    async def pay(event: Placed, db: AsyncSession) -> None:
        account = await db.get(Account, "a")
        if account is None:
            account = Account(name="a", cents=0)
            db.add(account)
        account.cents += 1

    @service.on(Placed, retry=AT_ONCE)
    def pay_too(event: Placed, db: Session) -> None:
        account = db.get(Account, "a")
        assert account is not None
        account.cents += 1

    async with start(service) as system:
        await handle(system, *(f"{number}" for number in range(40)))
        assert errors(system) == []
        assert await system.fetch("shop", "select cents from account") == [{"cents": 80}]


# -- what goes wrong -------------------------------------------------------------------------------


async def test_a_plain_def_does_not_block_the_loop_and_ends_with_its_timeout(
    start: Start, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["start"] == "inline":
        return  # there, a plain `def` runs on the loop itself
    service = Service("shop")
    entered, go = threading.Event(), threading.Event()
    late: list[BaseException] = []

    @service.on(Placed, retry=NO_RETRY, timeout=0.05)
    def stuck(event: Placed, db: Session) -> None:
        db.add(Order(name=event.name))
        db.flush()
        entered.set()
        go.wait(20)
        try:
            db.scalar(select(Order.id))
        except BaseException as error:
            late.append(error)
            raise

    async with start(service) as system:
        await system.publish(Placed(name="a"))
        turns = 0
        while not entered.is_set():
            await asyncio.sleep(0.001)
            turns += 1
        await system.settled()
        go.set()
        assert "HandlerTimeout" in await dead(system)
        assert await names(system) == []
        async with asyncio.timeout(10):
            while not late:
                await asyncio.sleep(0.001)
        assert isinstance(late[0], TransactionClosed)


async def test_a_statement_that_outlasts_the_timeout(
    start: Start, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """Cancelled inside a savepoint it is a timeout still, so its attempts are counted."""
    if request.node.callspec.params["start"] == "inline":
        return  # there, a statement runs on the loop itself
    service = Service("shop")
    sql = """with recursive c(n) as (select 1 union all select n + 1 from c where n < 2000000)
      select count(*) from c"""

    @service.on(Placed, retry=NO_RETRY, timeout=0.02)
    async def count(event: Placed, db: AsyncSession) -> None:
        if event.name == "slow":
            async with db.begin_nested():
                db.add(Order(name=event.name))
                await db.execute(text(sql))

    @service.on(Placed)
    async def place(event: Placed, db: AsyncSession) -> None:
        db.add(Order(name=f"{event.name}-placed"))

    async with start(service) as system:
        await handle(system, "slow", "good")
        assert "HandlerTimeout" in await dead(system)
        assert await names(system) == ["good-placed", "slow-placed"]
    assert not [record for record in caplog.records if record.name.startswith("sqlalchemy")]


async def test_a_thread_that_waits_for_its_turn_is_let_go(
    start: Start, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["start"] == "inline":
        return
    service = Service("shop")
    late: list[BaseException] = []

    @service.on(Placed, retry=NO_RETRY, timeout=0.05)
    def wait(event: Placed, db: Session) -> None:
        if event.name == "first":
            return
        try:
            db.scalar(select(Order.id))
        except BaseException as error:
            late.append(error)
            raise

    async with start(service) as system:
        await handle(system, "first")  # now the partitions are claimed
        async with service.transaction() as tx:
            await tx.fetch("select 1 as one")  # the turn is taken
            await system.publish(Placed(name="a"))
            async with asyncio.timeout(20):
                while len(late) < 2:  # in the batch, and alone
                    await asyncio.sleep(0.001)
        await system.settled()
        assert all(isinstance(error, TransactionClosed) for error in late)
        assert "HandlerTimeout" in await dead(system)
        await handle(system, "b")  # the store is free


class Broken:
    """A unit of work whose store has gone."""

    dialect = "sqlite"

    @property
    def unit(self) -> Any:
        return self

    async def run(self, sql: str, sets: object) -> Any:
        raise StoreUnavailable("the disk is full")


async def test_a_store_that_fails_is_not_the_handlers_failure() -> None:
    with pytest.raises(StoreUnavailable):
        async with session(Broken()) as db:
            await db.scalar(select(Order.id))
    with pytest.raises(StoreUnavailable):
        async with session(Broken()) as db:
            db.add(Order(name="a"))
    with pytest.raises(StoreUnavailable):  # noqa: PT012 - swallowed, it comes again
        async with session(Broken()) as db:
            with pytest.raises(StoreUnavailable):
                await db.scalar(select(Order.id))


async def test_a_cancelled_handler_leaves_nothing(start: Start) -> None:
    service = Service("shop")
    calls: list[str] = []

    @service.on(Placed, retry=Retry(attempts=2, first=0.0), timeout=0.2)
    async def place(event: Placed, db: AsyncSession) -> None:
        calls.append(event.name)
        db.add(Order(name=event.name))
        await db.flush()
        if len(calls) < 3:
            await asyncio.Event().wait()

    async with start(service) as system:
        await system.publish(Placed(name="a"))
        for attempt in range(1, 4):
            async with asyncio.timeout(10):
                while len(calls) < attempt:
                    await asyncio.sleep(0.001)
            if isinstance(system.ambient, VirtualAmbient):
                await system.ambient.advance(0.3)
        await system.settled()
        assert await names(system) == ["a"]
        assert await system.dead("shop") == []


# -- around it -------------------------------------------------------------------------------------


def test_oyez_does_not_load_sqlalchemy() -> None:
    program = (
        "import oyez, oyez.testing, oyez.runtime.process, sys; print('sqlalchemy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "False\n", ran.stderr


ENV = """
import asyncio

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from oyez.sqlalchemy import include_name

config = context.config


def migrate(connection):
    context.configure(
        connection=connection,
        target_metadata=config.attributes["metadata"],
        include_name=include_name,
    )
    with context.begin_transaction():
        context.run_migrations()


async def migrate_async(url, settings):
    engine = create_async_engine(url, connect_args={"server_settings": settings})
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


url = config.get_main_option("sqlalchemy.url")
if url.startswith("sqlite"):
    with create_engine(url).connect() as connection:
        migrate(connection)
else:
    asyncio.run(migrate_async(url, config.attributes["settings"]))
"""
SCRIPT = """
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
import sqlalchemy as sa
from sqlalchemy import Text
from alembic import op
${imports or ""}
def upgrade():
    ${upgrades}
def downgrade():
    ${downgrades}
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_alembic_leaves_oyezs_tables_alone(kind: str, tmp_path: Path) -> None:
    settings: dict[str, str] = {}
    if kind == "sqlite":
        store_url, url = "sqlite:service.db", f"sqlite:///{tmp_path / 'service.db'}"
    else:
        schema = f"sa_{uuid.uuid4().hex[:12]}"
        found = server("postgresql").url
        store_url, url = f"{found}?schema={schema}", found.replace("://", "+asyncpg://")
        settings["search_path"] = schema
    store = connect(store_url, SystemAmbient(), root=tmp_path)
    await store.open()
    await store.close()
    folder = tmp_path / "alembic"
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(ENV)
    (folder / "script.py.mako").write_text(SCRIPT)
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("sqlalchemy.url", url)
    config.attributes.update(metadata=Model.metadata, settings=settings)

    def work() -> str:
        command.revision(config, "models", autogenerate=True)
        command.upgrade(config, "head")
        command.check(config)  # raises when anything is left to do
        (script,) = (folder / "versions").glob("*.py")
        return script.read_text()

    script = await asyncio.to_thread(work)
    assert "create_table('orders'" in script
    assert "oyez_" not in script
    await store.open()
    try:
        assert await store.fetch("select count(*) as n from oyez_outbox", {}) == [{"n": 0}]
        assert await store.fetch("select count(*) as n from orders", {}) == [{"n": 0}]
    finally:
        await store.close()


def test_other_names_are_included() -> None:
    assert include_name("orders", "table", {})
    assert include_name("oyez_", "schema", {})
    assert include_name(None, "schema", {})
    assert not include_name("oyez_inbox", "table", {})
