"""Identities in other programs: files that they load, and text for their prompts."""
