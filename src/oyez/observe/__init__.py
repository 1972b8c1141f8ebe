"""Turns the core's signals into logs and metrics, and carries dashboards and alerts for these."""

from pathlib import Path

FILES = Path(__file__).parent
"""The folder of ``grafana``, with dashboards, and of ``prometheus``, with rules and alerts."""
