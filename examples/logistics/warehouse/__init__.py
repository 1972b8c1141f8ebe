"""Warehouse: has parcels picked, packed and loaded, and shares the docks of each depot."""
