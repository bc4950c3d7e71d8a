"""One file per command: options in, calls to the library, words out."""
