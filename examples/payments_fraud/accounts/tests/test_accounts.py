"""The ledger against everything that may be asked of it, in any order and twice."""

from __future__ import annotations

from accounts.events import (
    AccountOpened,
    FundsHeld,
    FundsReleased,
    FundsShort,
    HoldFunds,
    PostTransfer,
    ReleaseFunds,
    TransferPosted,
)
from accounts.service import service
from oyez.testing import Running, System


async def opened(system: System) -> None:
    for account in ("ada", "bob"):
        await tell(system, AccountOpened(account=account, cents=1_000))


async def tell(system: System, *events: object) -> None:
    for event in events:
        await system.publish(event, service="transfers")
        await system.settled()


def asked(number: int, cents: int, source: str = "ada", target: str = "bob") -> HoldFunds:
    return HoldFunds(transfer_id=str(number), source=source, target=target, cents=cents)


async def accounts(system: System) -> dict[str, tuple[int, int]]:
    rows = await system.fetch("accounts", "select account, balance, held from accounts")
    return {row["account"]: (row["balance"], row["held"]) for row in rows}


async def test_what_is_held_is_moved_once(running: Running) -> None:
    async with running(service) as system:
        await opened(system)
        await tell(system, asked(1, 600))
        assert await accounts(system) == {
            "world": (-2_000, 0),
            "ada": (1_000, 600),
            "bob": (1_000, 0),
        }
        await tell(system, PostTransfer(transfer_id="1"), PostTransfer(transfer_id="1"))
        assert await accounts(system) == {"world": (-2_000, 0), "ada": (400, 0), "bob": (1_600, 0)}
        assert len(system.announced(TransferPosted)) == 2
        rows = await system.fetch(
            "accounts", "select account, cents from entry where booking = '1' order by account"
        )
        assert [(row["account"], row["cents"]) for row in rows] == [("ada", -600), ("bob", 600)]


async def test_money_is_not_held_twice(running: Running) -> None:
    async with running(service) as system:
        await opened(system)
        await tell(system, asked(1, 1_000), asked(2, 1))
        assert system.announced(FundsHeld) == [FundsHeld(transfer_id="1")]
        assert [each.transfer_id for each in system.announced(FundsShort)] == ["2"]


async def test_what_is_released_is_free_and_asking_again_changes_nothing(running: Running) -> None:
    async with running(service) as system:
        await opened(system)
        release = ReleaseFunds(transfer_id="1")
        await tell(system, asked(1, 600), release, release)
        assert len(system.announced(FundsReleased)) == 2
        assert (await accounts(system))["ada"] == (1_000, 0)
        assert await system.fetch("accounts", "select * from entry where booking = '1'") == []


async def test_a_hold_that_comes_after_its_release_holds_nothing(running: Running) -> None:
    async with running(service) as system:
        await opened(system)
        await tell(system, ReleaseFunds(transfer_id="1"), asked(1, 600))
        assert [each.reason for each in system.announced(FundsShort)] == ["the money is released"]
        assert (await accounts(system))["ada"] == (1_000, 0)


async def test_nobody_sends_from_the_world_to_themselves_or_to_nobody(running: Running) -> None:
    async with running(service) as system:
        await opened(system)
        await tell(
            system,
            asked(1, 10, source="world"),
            asked(2, 10, target="ada"),
            asked(3, 10, target="nobody"),
            asked(4, 10, source="nobody"),
        )
        assert len(system.announced(FundsShort)) == 4
        assert all(held == 0 for _, held in (await accounts(system)).values())


async def test_what_is_not_held_is_never_booked(running: Running) -> None:
    async with running(service) as system:
        await opened(system)
        await tell(system, PostTransfer(transfer_id="1"))
        await system.advance(60.0)
        assert system.announced(TransferPosted) == []
        assert len(await system.dead("accounts")) == 1
