"""The double-entry ledger: who has how much, and what of it is held."""
