"""The HTTP service: identities of a folder, requests of different people in one batch."""
