"""Turns the core's signals into logs and metrics."""
