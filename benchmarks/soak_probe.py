"""The service of `benchmarks.soak`: the job of `benchmarks.consume_job`, its inbox kept a minute.

With the week that an inbox is kept, its file would grow for a week, and a soak of minutes could not
tell that from a leak.
"""

from __future__ import annotations

from benchmarks.consume_job import ledger
from oyez.runtime import housekeeping

housekeeping.INBOX_RETENTION = 60.0

service = ledger()
