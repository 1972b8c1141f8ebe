"""Ingest: judges what the sensors send, and announces each reading once."""
