"""The frozen text-to-image model: opened from a folder, a file, the hub or the package."""
