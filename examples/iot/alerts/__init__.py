"""Alerts: says when a sensor is too warm, and when one has fallen silent."""
