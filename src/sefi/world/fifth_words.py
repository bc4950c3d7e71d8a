"""Words that the fifth version adds to the fourth's (see `captions`): label to phrases, the first one the plainest."""

NEW_PHRASES = {
    "orange hair": ("with orange hair",),
    "white hair": ("with white hair",),
    "turquoise hair": ("with turquoise hair",),
    "crown": ("wearing a crown", "with a crown"),
}
NEW_DOING = {
    "flowers": ("holding flowers", "with a bunch of flowers"),
    "phone": ("talking on the phone", "with a phone"),
    "ice cream": ("eating ice cream", "holding an ice cream"),
    "singing": ("singing", "singing into a microphone"),
}
NEW_PLACES = {
    "mountains": ("in the mountains",),
    "garden": ("in a garden", "in the garden"),
    "underwater": ("underwater", "under water"),
    "library": ("in a library", "in the library"),
}
NEW_MEDIA = {
    "watercolour": ("a watercolour of", "a watercolour painting of"),
    "comic": ("a comic of", "a comic book drawing of"),
    "black and white": ("a black and white photo of", "a black and white picture of"),
    "chalk": ("a chalk drawing of",),
}
NEW_LIGHT_WORDS = {
    "sunset": "at sunset",
    "neon": "in neon light",
    "dim": "in dim light",
    "fog": "in fog",
}
# Clothes; where a colour is named, the picture's own goes into {}.
GARMENTS = {
    "shirt": ("in a {} shirt", "wearing a {} shirt"),
    "striped shirt": ("in a striped shirt", "wearing a striped shirt"),
    "hoodie": ("in a {} hoodie", "wearing a {} hoodie"),
    "sweater": ("in a {} sweater", "wearing a {} sweater"),
    "dress": ("in a {} dress", "wearing a {} dress"),
    "suit": ("in a suit", "wearing a suit"),
    "leather jacket": ("in a leather jacket", "wearing a leather jacket"),
    "raincoat": ("in a raincoat", "wearing a raincoat"),
    "scarf": ("with a scarf", "wearing a scarf"),
    "apron": ("in an apron", "wearing an apron"),
    "armour": ("in armour", "wearing armour"),
    "spacesuit": ("in a spacesuit", "wearing a spacesuit"),
}
CAMERAS = {
    "blurred background": ("with a blurred background",),
    "wide shot": ("in a wide shot", "from afar"),
}
# Upper ends of ranges of hue (turns), and the word for a colour in each.
HUES = (
    (0.04, "red"),
    (0.09, "orange"),
    (0.20, "yellow"),
    (0.45, "green"),
    (0.52, "turquoise"),
    (0.66, "blue"),
    (0.86, "purple"),
    (0.955, "pink"),
    (1.01, "red"),
)
