"""How data goes by claim check."""

from __future__ import annotations

from typing import Annotated

import msgspec

from oyez.endpoint import Bytes, Seconds, limits


class ClaimCheckOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How data goes by claim check."""

    over: Annotated[int, limits(0, 1_000_000_000, "bytes")] = 0
    """Records of more bytes, headers and data, go this way; 0: those that the broker won't take."""
    most: Bytes = 1_048_576
    """The most bytes of data that a reader takes for one record."""
    deadline: Seconds = 10.0
    """Seconds after which the storage counts as out of reach."""
