"""Pictures and numbers to contact sheets, figures and one self-contained page."""
