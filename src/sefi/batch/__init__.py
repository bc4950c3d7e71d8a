"""A folder of photos to a folder of identities: what is to be learned, what is done, and who does it."""
