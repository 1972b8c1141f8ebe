"""How many requests pass: rate limits, limits of concurrency, and load that is shed.

::

    rates.py        the step of rate limits, and what an answer says of them
    counted.py      whose requests are counted together
    buckets.py      the buckets of one limit in this process
    leases.py       the buckets of one limit that replicas share: tokens taken in advance
    ledger.py       their store, asked for many at a time, and what if it is away
    store.py        what is asked of it
    redis.py        the buckets in Redis
    postgresql.py   the buckets in PostgreSQL
    concurrency.py  the step that bounds how many requests are at work
    shedding.py     the step that refuses requests while the event loop lags
"""

from oyez.gateway.limits.concurrency import Concurrency
from oyez.gateway.limits.rates import Rates
from oyez.gateway.limits.shedding import Shedding

__all__ = ["Concurrency", "Rates", "Shedding"]
