"""What a picture shows and who is on it, as numbers."""
