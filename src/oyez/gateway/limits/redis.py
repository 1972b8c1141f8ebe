"""Buckets in Redis: one key each, which expires when the bucket is full."""

from __future__ import annotations

from collections.abc import Sequence

from oyez.brokers.redis.connection import Connection
from oyez.brokers.redis.options import RedisOptions
from oyez.endpoint import Endpoint
from oyez.gateway.limits.store import Ask, Grant

_PORT = 6379
# Times are in microseconds. A double holds the present time exactly to a quarter of one.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answer = {}
for i, key in ipairs(KEYS) do
  local every, size, want = tonumber(ARGV[3*i - 2]), tonumber(ARGV[3*i - 1]), tonumber(ARGV[3*i])
  local full = math.max(tonumber(redis.call('GET', key) or now), now)
  local free = math.floor(size - (full - now) / every + 0.001)
  local count = math.max(math.min(want, free), 0)
  if count > 0 then
    full = full + count * every
    redis.call('SET', key, string.format('%.17g', full), 'PX', math.ceil((full - now) / 1000))
  end
  answer[2*i - 1] = count
  answer[2*i] = math.ceil(full - now)
end
return answer
"""


class RedisStore:
    """The buckets in a Redis; see :class:`oyez.gateway.limits.store.Store`."""

    def __init__(self, url: str) -> None:
        """Nothing is connected yet. Raises ConfigurationError for unknown options."""
        endpoint = Endpoint(url, port=_PORT)
        self._connection = Connection(endpoint, endpoint.options(RedisOptions))

    async def open(self) -> None:
        """See :class:`oyez.gateway.limits.store.Store`."""
        await self._connection.call([("PING",)])

    async def take(self, asks: Sequence[Ask]) -> list[Grant]:
        """See :class:`oyez.gateway.limits.store.Store`."""
        keys = [f"oyez:gateway:limits:{ask.bucket}" for ask in asks]
        given: list[str | int] = []
        for ask in asks:
            given += (f"{ask.every / 1000}", ask.size, ask.want)
        (found,) = await self._connection.call([("EVAL", _TAKE, len(keys), *keys, *given)])
        pairs = zip(found[::2], found[1::2], strict=True)
        return [Grant(count, ahead * 1000) for count, ahead in pairs]

    async def sweep(self) -> None:
        """Redis deletes them itself."""

    async def close(self) -> None:
        """See :class:`oyez.gateway.limits.store.Store`."""
        await self._connection.close()
