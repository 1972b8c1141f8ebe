"""Orders: takes orders over HTTP, announces them, and follows what becomes of each."""
