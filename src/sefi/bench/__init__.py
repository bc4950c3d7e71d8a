"""Subjects x methods x prompts x seeds: cells, records, statistics, tables."""
