"""What an image shows, and what images of a version of the embedded model may show."""

from dataclasses import dataclass

from tiny_portraits.drawing.traits import Animal, Person

ATTRIBUTES = (
    "smiling",
    "sad",
    "angry",
    "surprised",
    "eyes closed",
    "old",
    "beard",
    "sunglasses",
    "hat",
    "purple hair",
    "curly hair",
    "round face",
    "orange hair",
    "white hair",
    "turquoise hair",
    "crown",
)
PET_ATTRIBUTES = ("hat", "sunglasses")
EXPRESSIONS = ("smiling", "sad", "angry", "surprised")
ACTIONS = (
    "cup",
    "guitar",
    "book",
    "balloon",
    "umbrella",
    "basketball",
    "waving",
    "cooking",
    "flowers",
    "phone",
    "ice cream",
    "singing",
)
GARMENTS = (
    "shirt",
    "striped shirt",
    "hoodie",
    "sweater",
    "dress",
    "suit",
    "leather jacket",
    "raincoat",
    "scarf",
    "apron",
    "armour",
    "spacesuit",
)
INTERACTIONS = ("shaking hands",)
SCENES = (
    "beach",
    "snow",
    "forest",
    "city",
    "room",
    "tower",
    "desert",
    "space",
    "mountains",
    "garden",
    "underwater",
    "library",
)
STYLES = ("photo", "drawing", "painting", "pixel art", "watercolour", "comic", "black and white", "chalk")
LIGHTS = ("", "warm", "cold", "sunset", "neon", "dim", "fog")
CAMERAS = ("", "blurred background", "wide shot")
# What cannot be seen of a person who has an attribute; in a pencil drawing no colour can.
HIDES: dict[str, tuple[str, ...]] = {
    "smiling": ("lips",),
    "angry": ("lips",),
    "surprised": ("lips", "eye_size"),
    "eyes closed": ("eyes", "eye_size"),
    "old": ("hair colour",),
    "beard": ("jaw", "mole", "lips"),
    "sunglasses": ("eyes", "eye_size", "glasses", "brows"),
    "hat": ("hair style",),
    "purple hair": ("hair colour",),
    "orange hair": ("hair colour",),
    "white hair": ("hair colour",),
    "turquoise hair": ("hair colour",),
    "curly hair": ("hair style",),
    "round face": ("face", "jaw"),
}
# Styles without colour, beside the pencil drawing.
GREY_STYLES = ("drawing", "black and white", "chalk")
COLOURS = ("skin", "hair colour", "eyes", "coat")


@dataclass(frozen=True)
class Subject:
    """One person in an image.

    Attributes:
        person: who it is.
        x, y: face centre, in pixels of the 128-pixel square.
        scale: half the head's height, pixels.
        attributes: names from `ATTRIBUTES`.
        action: a name from `ACTIONS`, or "".
        clothes, accent: RGB colours in [0, 1]; accent colours the hat, the cup, the book ...
        tilt: head rotation, degrees.
        turn: where the face looks, -1 (its features moved to the left) to 1.
        garment: a name from `GARMENTS`, or "" for plain clothes.
    """

    person: Person
    x: float
    y: float
    scale: float
    attributes: tuple[str, ...]
    action: str
    clothes: tuple[float, float, float]
    accent: tuple[float, float, float]
    tilt: float
    turn: float
    garment: str = ""


@dataclass(frozen=True)
class Pet:
    """One animal in an image; places, colours and angles as in `Subject`, `attributes` from `PET_ATTRIBUTES`."""

    animal: Animal
    x: float
    y: float
    scale: float
    attributes: tuple[str, ...]
    collar: tuple[float, float, float]
    accent: tuple[float, float, float]
    tilt: float
    turn: float


@dataclass(frozen=True)
class ImageContent:
    """Everything that one drawing shows.

    Attributes:
        subjects: the people, left to right.
        scene_seed: fixes the scenery's details.
        pets: the animals, right of the people.
        interaction: what two people do with each other, from `INTERACTIONS`, or "".
        camera: a name from `CAMERAS`, or "" for the usual view.
    """

    subjects: tuple[Subject, ...]
    scene: str
    style: str
    light: str
    light_side: float
    scene_seed: int
    pets: tuple[Pet, ...] = ()
    interaction: str = ""
    camera: str = ""


def list_hidden(subject: Subject | Pet, style: str) -> frozenset[str]:
    """Return the kinds of traits (see `get_traits`) that an image in this style cannot show of this one."""
    hidden = {kind for attribute in subject.attributes for kind in HIDES.get(attribute, ())}
    return frozenset(hidden | set(COLOURS if style in GREY_STYLES else ()))


@dataclass(frozen=True)
class WorldVersion:
    """What a version of the embedded model draws, and the shape of its latents.

    Attributes:
        side: side of an image in pixels.
        cell: side of one latent cell in pixels, the autoencoder's f.
        channels: latent channels.
        attributes, actions, scenes, styles, lights, garments, cameras: labels that its images may have; "" in
            `lights` and `cameras` is the usual light and view, which no word names.
        style_shares, light_shares, camera_shares: how often each is drawn.
        omission: share of the captions that leave out something that the image shows: scene, action, clothes, light.
        longest: words and commas of the longest caption.
    """

    side: int
    cell: int
    channels: int
    attributes: tuple[str, ...] = ATTRIBUTES
    actions: tuple[str, ...] = ACTIONS
    scenes: tuple[str, ...] = SCENES
    styles: tuple[str, ...] = STYLES
    style_shares: tuple[float, ...] = (0.60, 0.07, 0.07, 0.07, 0.06, 0.05, 0.04, 0.04)
    lights: tuple[str, ...] = LIGHTS
    light_shares: tuple[float, ...] = (0.64, 0.06, 0.06, 0.06, 0.06, 0.06, 0.06)
    garments: tuple[str, ...] = GARMENTS
    cameras: tuple[str, ...] = CAMERAS
    camera_shares: tuple[float, ...] = (0.84, 0.10, 0.06)
    omission: float = 0.5
    longest: int = 30

    @property
    def latent_side(self) -> int:
        """Side of the latents in cells."""
        return self.side // self.cell


# The model in the package.
SHIPPED = WorldVersion(side=192, cell=8, channels=8)
