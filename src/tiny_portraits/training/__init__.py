"""Training of the embedded model and its evaluators."""
