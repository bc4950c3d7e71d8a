"""Metrics: what an image shows and who is on it, as numbers."""
