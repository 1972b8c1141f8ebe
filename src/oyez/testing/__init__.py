"""For tests: a harness that runs services in one process, and the suites that certify adapters.

`running` is the harness. `oyez.testing.broker_suite` and `oyez.testing.store_suite` (they need
pytest) hold any broker or store to Oyez's guarantees.
"""

from oyez.testing.clock import VirtualAmbient
from oyez.testing.harness import NotSettled, System, running

__all__ = ["NotSettled", "System", "VirtualAmbient", "running"]
