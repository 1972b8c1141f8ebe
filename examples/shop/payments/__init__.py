"""Payments: charges and refunds through a payment provider."""
