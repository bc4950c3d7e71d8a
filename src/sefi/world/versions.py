"""Settings of the embedded model's versions: resolution, latents and vocabulary."""

from dataclasses import dataclass

from sefi.core.errors import ConfigError


@dataclass(frozen=True)
class WorldVersion:
    """What a version of the embedded model draws, and the shape of its latents.

    Attributes:
        number: the version, as in the model card.
        side: side of an image in pixels.
        cell: side of one latent cell in pixels, the autoencoder's f.
        channels: latent channels.
    """

    number: int
    side: int
    cell: int
    channels: int

    @property
    def latent_side(self) -> int:
        """Side of the latents in cells."""
        return self.side // self.cell


# The model that the package ships, and the one that `sefi world train` makes.
FOURTH = WorldVersion(number=4, side=96, cell=4, channels=4)
FIFTH = WorldVersion(number=5, side=192, cell=8, channels=4)
VERSIONS = {version.number: version for version in (FOURTH, FIFTH)}


def get_version(number: int) -> WorldVersion:
    """Return the settings of a version.

    Raises:
        ConfigError: there is no such version.
    """
    if number not in VERSIONS:
        known = ", ".join(map(str, VERSIONS))
        raise ConfigError(f"There is no version {number} of the model.", f"Choose among {known}.")
    return VERSIONS[number]
