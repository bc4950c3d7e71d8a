"""A point in a space of looks: numbers with names, some of which choose among options."""

from typing import ClassVar


class Point:
    """What people and animals have in common.

    Attributes:
        names: what the coordinates are called, in their order.
        coordinates: `[len(names)]` numbers in [0, 1]; neighbours look alike.
    """

    names: ClassVar[tuple[str, ...]]
    coordinates: tuple[float, ...]

    def value(self, name: str) -> float:
        """The coordinate of this name, in [0, 1]."""
        return self.coordinates[self.names.index(name)]

    def choice(self, name: str, options: tuple[str, ...]) -> str:
        """The option that a categorical coordinate selects."""
        return options[min(int(self.value(name) * len(options)), len(options) - 1)]
