"""Oyez beside its peers and beside code written by hand: ``python -m benchmarks``.

Every figure is a ratio from one interleaved run (A B C, B C A, …), because absolute figures say
more about the machine than about the code. Predictions, results and what was learnt from them are
in NOTES.md.
"""
