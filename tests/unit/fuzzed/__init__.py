"""What reads untrusted bytes, each with inputs to begin from: see `scripts/fuzz`."""

from __future__ import annotations

from fuzzed import gateway, service
from fuzzed.target import Target, run

__all__ = ["TARGETS", "Target", "run"]

TARGETS: dict[str, Target] = gateway.TARGETS | service.TARGETS
