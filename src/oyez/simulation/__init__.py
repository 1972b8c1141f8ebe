"""Crash testing of services, in one process and virtual time, repeatable by a seed.

`oyez simulate` runs it. A scenario of ``simulate.py`` gets a `Sim`; `outside` stands for what lies
outside of the system; `simulate` makes a pytest test of a scenario.
"""
