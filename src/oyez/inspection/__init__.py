"""What can be seen of a system from outside: plain values, gathered from its brokers and stores.

Functions take a `oyez.project.Project` (or a store and a broker that are open) and return frozen
values; `as_value` beside them gives their form for JSON. Nothing is printed, created or changed.
What can't be looked at is a value as well, a `oyez.inspection.reach.Gap`.
"""
