"""Profile: the pages, of one person and of all that happens."""
