"""The inspection of a system from outside, through its brokers and stores.

Functions take an `oyez.project.Project` (or an open store and an open broker) and return frozen
values; `as_value` in each module converts them for JSON. Nothing is printed, created or changed. A
part of the system that is out of reach is reported as a `oyez.inspection.reach.Gap`.
"""
