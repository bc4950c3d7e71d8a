"""From a photo file to an upright picture, a face, a square crop and its random views."""
