"""Dashboard: what a person looks at, read from a copy of its own."""
