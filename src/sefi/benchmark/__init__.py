"""Subjects x methods x prompts x seeds: samples, records, statistics, tables."""
