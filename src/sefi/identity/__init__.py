"""What is learned: stages, the tokens of each, and the identity file."""
