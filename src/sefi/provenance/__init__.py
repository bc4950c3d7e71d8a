"""What says of an image that a machine made it: an invisible mark, and words in the file."""
