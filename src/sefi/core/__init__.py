"""Configuration, errors, files, images, random generators and protocols, which every room may import."""
