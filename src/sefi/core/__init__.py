"""Nouns, configuration, errors, random streams and protocols: what every room may know."""
