"""A small benchmark suite that several tests run: one prompt, the method and a control."""

SUITE = """
about = "Dogs, so that no face is needed."
kind = "dog"
seeds = [5]
settings = ["learn.steps=2", "learn.batch=1", "generate.steps=2"]

[[prompts]]
text = "a photo of {} at the beach"
kind = "scene"

[[variants]]
label = "ours"

[[variants]]
label = "word"
control = "class word"
"""
