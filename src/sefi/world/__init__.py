"""A small drawn world whose truth is known, and the training of the model that ships with the package."""
