"""What the drawings show, and how they are drawn."""
