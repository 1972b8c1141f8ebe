"""Entries in Redis, each a hash that expires by itself; each step on one is a script.

What an acknowledged write is worth is Redis's to say: without ``appendfsync always`` a crash loses
the last second, and a replica that takes over lacks what had not reached it. Then a repeat reaches
the service again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oyez.brokers.redis.connection import Connection
from oyez.config import IdempotencySettings
from oyez.gateway.idempotency.entry import Answered, Entry, Owned, State, answered

_NOW = """
local at = redis.call('TIME')
local now = at[1] * 1000 + math.floor(at[2] / 1000)
"""
# KEYS: the entry, and the holder's entries that have ended by when they expire.
_BEGIN = f"""{_NOW}
local known = redis.call('HMGET', KEYS[1], 'payload', 'until', 'answer')
if known[1] then
  if known[1] ~= ARGV[1] then return 'reused' end
  if known[3] then return {{known[3]}} end
  if tonumber(known[2]) > now then return 'running' end
end
redis.call('HSET', KEYS[1], 'payload', ARGV[1], 'owner', ARGV[2], 'until', now + ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZREM', KEYS[2], KEYS[1])
return 'begun'
"""
_END = f"""{_NOW}
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return end
redis.call('HSET', KEYS[1], 'owner', '', 'until', 0)
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'answer', ARGV[2]) end
redis.call('ZADD', KEYS[2], now + redis.call('PTTL', KEYS[1]), KEYS[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local above = redis.call('ZCARD', KEYS[2]) - ARGV[4]
if above > 0 then
  for _, oldest in ipairs(redis.call('ZRANGE', KEYS[2], 0, above - 1)) do
    redis.call('DEL', oldest)
    redis.call('ZREM', KEYS[2], oldest)
  end
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
"""
_RENEW = f"""{_NOW}
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'until', now + ARGV[2])
end
"""


class RedisEntries:
    """The entries in a Redis; see `oyez.gateway.idempotency.entry.Entries`."""

    def __init__(self, connection: Connection, settings: IdempotencySettings) -> None:
        """Nothing is connected yet."""
        self._connection = connection
        self._lease = _millis(settings.lease)
        self._lifetime = _millis(settings.lifetime)
        self._answers = settings.answers

    async def open(self) -> None:
        """See `Entries`."""
        await self._connection.call([("PING",)])

    async def close(self) -> None:
        """See `Entries`."""
        await self._connection.close()

    async def begin(self, entry: Entry, mark: bytes) -> State | Answered:
        """See `Entries`."""
        wanted = (entry.payload, mark, self._lease, self._lifetime)
        reply: Any
        (reply,) = await self._connection.call([("EVAL", _BEGIN, 2, *_keys(entry), *wanted)])
        if isinstance(reply, list):
            return answered(reply[0])
        return State(reply.decode())

    async def end(self, owned: Owned, answer: bytes | None) -> None:
        """See `Entries`."""
        keys = _keys(owned.entry)
        ended = (owned.mark, answer or b"", self._lifetime, self._answers)
        await self._connection.call([("EVAL", _END, 2, *keys, *ended)])

    async def renew(self, running: Sequence[Owned]) -> None:
        """See `Entries`."""
        commands = [
            ("EVAL", _RENEW, 1, _keys(owned.entry)[0], owned.mark, self._lease) for owned in running
        ]
        await self._connection.call(commands)

    async def sweep(self) -> bool:
        """See `Entries`: Redis does so by itself."""
        return False


def _keys(entry: Entry) -> tuple[str, str]:
    # In braces, so that a cluster would keep all of a holder's keys on one server.
    holder = f"oyez:gateway:idempotency:{{{entry.holder.hex()}}}"
    return f"{holder}:{entry.id.hex()}", holder


def _millis(seconds: float) -> int:
    return max(1, round(seconds * 1000))
