"""Read a photo file upright, find a face, cut out a square, and draw random views of it."""
