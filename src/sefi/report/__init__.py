"""Reports: contact sheets, figures and self-contained pages from images and numbers."""
