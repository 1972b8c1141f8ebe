"""Eta: learns from the scans how late each route is, and says when a parcel will land."""
