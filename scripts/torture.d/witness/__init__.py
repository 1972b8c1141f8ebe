"""Witness: a service that joins the shop and writes down what it was given to handle."""
