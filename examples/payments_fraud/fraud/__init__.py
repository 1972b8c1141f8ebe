"""Screening: what speaks for fraud, and a model that learns from reviews."""
