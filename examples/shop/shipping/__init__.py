"""Shipping: prepares parcels, and sends those that are paid for and in stock."""
