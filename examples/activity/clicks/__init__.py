"""Clicks: takes what people click, and alone knows who they are."""
