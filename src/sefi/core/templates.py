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

# Textual Inversion's 27 (CLIP's small ImageNet list), without the article before the subject's name.
INVERSION_TEMPLATES = (
    "a photo of {}",
    "a rendering of {}",
    "a cropped photo of {}",
    "the photo of {}",
    "a photo of clean {}",
    "a photo of dirty {}",
    "a dark photo of {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of {}",
    "a bright photo of {}",
    "a cropped photo of the {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of {}",
    "a photo of nice {}",
    "a good photo of {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of cool {}",
    "a photo of small {}",
)
