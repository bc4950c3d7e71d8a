"""Configuration, errors, files, images, random generators and protocols, which every room may import."""

__version__ = "0.1.0"
