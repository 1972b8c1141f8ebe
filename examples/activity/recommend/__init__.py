"""Recommend: what is seen together, counted for each visit and learned each night."""
