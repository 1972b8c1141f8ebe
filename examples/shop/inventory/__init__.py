"""Inventory: keeps count of what is free, reserved and shipped."""
