"""Measure: makes windows of the readings, by the time at which they were taken."""
