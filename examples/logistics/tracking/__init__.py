"""Tracking: makes one journey of a parcel's scans, in whatever order they come."""
