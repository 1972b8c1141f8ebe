"""Trending: what is looked at more often than other things just now."""
