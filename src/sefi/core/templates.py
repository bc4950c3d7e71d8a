"""The sentences that methods learn with; `{}` takes the placeholder or the class word."""

# Ours: the seven of the paper, section 6.4.
FACE_TEMPLATES = (
    "a photo of a face of {}",
    "a photo of a rendering of a face of {}",
    "a close-up photo of the face of {}",
    "a photo of the cool face of {}",
    "a rendition of the face of {}",
    "an illustration of a face of {}",
    "a depiction of a face of {}",
)

# DreamBooth and Custom Diffusion: one sentence.
SHORT_TEMPLATES = ("a photo of {}",)

# The 27 sentences of CLIP's small ImageNet list that Textual Inversion took up.
CLASS_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
# Their 81 with two more media, as in Textual Inversion's and Celeb Basis' code.
MEDIA = ("a photo of", "an illustration of", "a depiction of")
ALL_TEMPLATES = tuple(
    t.replace(MEDIA[0], medium, 1) if t.startswith(MEDIA[0]) else t for medium in MEDIA for t in CLASS_TEMPLATES
)
# Of a face, as Celeb Basis and Cross Initialization learn.
FACE_TEMPLATES_81 = tuple(t.format("face of {}") for t in ALL_TEMPLATES)
