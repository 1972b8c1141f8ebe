"""Tools for tests: a harness that runs services in one process, and suites that certify adapters.

`running` is the harness, also as a fixture of the pytest plugin, `oyez.testing.plugin`, whose type
is `Running`. `oyez.testing.broker_suite` and `oyez.testing.store_suite` (they need pytest) check a
broker or a store against Oyez's guarantees.
"""

from oyez.testing.clock import VirtualAmbient
from oyez.testing.harness import NotSettled, Running, System, running

__all__ = ["NotSettled", "Running", "System", "VirtualAmbient", "running"]
