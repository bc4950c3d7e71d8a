"""Ask people: build a study from a run, read the answers, and analyse them."""
