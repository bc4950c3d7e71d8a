"""Tiny Portraits: the embedded model, what it draws, how it was trained and how it is measured."""
