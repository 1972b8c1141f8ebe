"""The saga of a transfer: hold, screen, post, or release."""
