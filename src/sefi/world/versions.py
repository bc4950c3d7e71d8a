"""Settings of the embedded model's versions: resolution, latents and vocabulary."""

from dataclasses import dataclass

from sefi.core.errors import ConfigError
from sefi.world.fifth_words import CAMERAS, GARMENTS, NEW_DOING, NEW_LIGHT_WORDS, NEW_MEDIA, NEW_PHRASES, NEW_PLACES
from sefi.world.picture import ACTIONS, ATTRIBUTES, LIGHTS, SCENES, STYLES


@dataclass(frozen=True)
class WorldVersion:
    """What a version of the embedded model draws, and the shape of its latents.

    Attributes:
        number: the version, as in the model card.
        side: side of an image in pixels.
        cell: side of one latent cell in pixels, the autoencoder's f.
        channels: latent channels.
        attributes, actions, scenes, styles, lights, garments, cameras: labels that its pictures may have; "" in
            `lights` and `cameras` is the usual light and view, which no word names.
        style_shares, light_shares, camera_shares: how often each is drawn.
        omission: share of the captions that leave out something that the picture shows: scene, action, clothes, light.
        longest: words and commas of the longest caption.
    """

    number: int
    side: int
    cell: int
    channels: int
    attributes: tuple[str, ...] = ATTRIBUTES
    actions: tuple[str, ...] = ACTIONS
    scenes: tuple[str, ...] = SCENES
    styles: tuple[str, ...] = STYLES
    style_shares: tuple[float, ...] = (0.67, 0.11, 0.11, 0.11)
    lights: tuple[str, ...] = LIGHTS
    light_shares: tuple[float, ...] = (0.84, 0.08, 0.08)
    garments: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ("",)
    camera_shares: tuple[float, ...] = (1.0,)
    omission: float = 0.0
    longest: int = 30

    @property
    def latent_side(self) -> int:
        """Side of the latents in cells."""
        return self.side // self.cell


FOURTH = WorldVersion(number=4, side=96, cell=4, channels=4)
FIFTH = WorldVersion(
    number=5,
    side=192,
    cell=8,
    channels=8,
    attributes=(*ATTRIBUTES, *NEW_PHRASES),
    actions=(*ACTIONS, *NEW_DOING),
    scenes=(*SCENES, *NEW_PLACES),
    styles=(*STYLES, *NEW_MEDIA),
    style_shares=(0.60, 0.07, 0.07, 0.07, 0.06, 0.05, 0.04, 0.04),
    lights=(*LIGHTS, *NEW_LIGHT_WORDS),
    light_shares=(0.64, 0.06, 0.06, 0.06, 0.06, 0.06, 0.06),
    garments=tuple(GARMENTS),
    cameras=("", *CAMERAS),
    camera_shares=(0.84, 0.10, 0.06),
    omission=0.5,
)
# The model in the package.
SHIPPED = FOURTH
VERSIONS = {version.number: version for version in (FOURTH, FIFTH)}


def version_of_side(side: int) -> WorldVersion:
    """Return the version whose images have this side; the fourth for any other."""
    return next((version for version in VERSIONS.values() if version.side == side), FOURTH)


def get_version(number: int) -> WorldVersion:
    """Return the settings of a version.

    Raises:
        ConfigError: there is no such version.
    """
    if number not in VERSIONS:
        known = ", ".join(map(str, VERSIONS))
        raise ConfigError(f"There is no version {number} of the model.", f"Choose among {known}.")
    return VERSIONS[number]
