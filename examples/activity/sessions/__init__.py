"""Sessions: which clicks are one visit."""
