"""The ledger. Money is held before it moves, and each booking is two entries that add up to zero.

Asked again, each handler answers again and does it once: what became of a transfer is in ``hold``.
"""

from __future__ import annotations

from accounts import events
from oyez import Service, Transaction

_COVER = """update accounts set held = held + :cents
 where account = :source and balance - held - :cents >= least
  and account not in ('world', :target)
  and exists (select 1 from accounts as other where other.account = :target)
 returning account"""
_RELEASE = """update hold set state = 'released' where transfer_id = :transfer_id
 and state = 'held' returning source, cents"""
_POST = """update hold set state = 'posted' where transfer_id = :transfer_id
 and state = 'held' returning source, target, cents"""
_NEVER = """insert into hold (transfer_id, state) values (:transfer_id, 'released')
 on conflict (transfer_id) do nothing"""
_KEEP = "insert into hold values (:transfer_id, :source, :target, :cents, :state)"
_FREE = "update accounts set held = held - :cents where account = :source"
_STATE = "select state from hold where transfer_id = :transfer_id"

service = Service("accounts", migrations="accounts/migrations")


@service.on(events.AccountOpened)
async def open_account(event: events.AccountOpened, tx: Transaction) -> None:
    """Open the account, and book what was paid in."""
    tx.execute("insert into accounts (account) values (:account)", account=event.account)
    _book(tx, f"opened {event.account}", "world", event.account, event.cents)


@service.on(events.HoldFunds)
async def hold(event: events.HoldFunds, tx: Transaction) -> events.FundsHeld | events.FundsShort:
    """Hold the money, if there is enough above the account's limit."""
    known = await tx.fetch_one(_STATE, transfer_id=event.transfer_id)
    if known is None:
        wanted = {"source": event.source, "target": event.target, "cents": event.cents}
        known = {"state": "held" if await tx.fetch(_COVER, **wanted) else "short"}
        tx.execute(_KEEP, transfer_id=event.transfer_id, **wanted, **known)
    if known["state"] == "held":
        return events.FundsHeld(transfer_id=event.transfer_id)
    return events.FundsShort(transfer_id=event.transfer_id, reason=f"the money is {known['state']}")


@service.on(events.ReleaseFunds)
async def release(event: events.ReleaseFunds, tx: Transaction) -> events.FundsReleased:
    """Free what is held; say so in any case, as the saga waits for it."""
    held = await tx.fetch_one(_RELEASE, transfer_id=event.transfer_id)
    if held is not None:
        tx.execute(_FREE, **held)
    else:  # keeps a late HoldFunds from holding for ever
        tx.execute(_NEVER, transfer_id=event.transfer_id)
    return events.FundsReleased(transfer_id=event.transfer_id)


@service.on(events.PostTransfer)
async def post(event: events.PostTransfer, tx: Transaction) -> events.TransferPosted:
    """Move what is held."""
    held = await tx.fetch_one(_POST, transfer_id=event.transfer_id)
    if held is not None:
        tx.execute(_FREE, source=held["source"], cents=held["cents"])
        _book(tx, event.transfer_id, **held)
    elif await tx.fetch_one(_STATE, transfer_id=event.transfer_id) != {"state": "posted"}:
        raise ValueError(f"nothing is held for {event.transfer_id}")
    return events.TransferPosted(transfer_id=event.transfer_id)


def _book(tx: Transaction, booking: str, source: str, target: str, cents: int) -> None:
    for account, change in ((source, -cents), (target, cents)):
        sql = "insert into entry values (:booking, :account, :cents, :at)"
        tx.execute(sql, booking=booking, account=account, cents=change, at=tx.time)
        sql = "update accounts set balance = balance + :cents where account = :account"
        tx.execute(sql, account=account, cents=change)
