"""What is learned: stages, the tokens of each, and the file they travel in."""
