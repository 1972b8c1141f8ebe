"""Crash testing of services, in one process and virtual time, repeatable by a seed.

`oyez simulate` runs it. A scenario, in ``simulate.py`` beside ``oyez.toml``, gets a `Sim`;
`outside` stands for what lies outside of the system, and `simulate` makes a pytest test of a
scenario.
"""

from oyez.simulation.outside import outside
from oyez.simulation.plugin import simulate
from oyez.simulation.sim import Sim

__all__ = ["Sim", "outside", "simulate"]
