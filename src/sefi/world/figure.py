"""A figure of merit, its target, and on how many things it was measured."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number of the model card.

    Attributes:
        value: higher is better where there is a target.
        target: least value wanted; None where the figure only informs.
        n: pictures, faces or people it was measured on.
    """

    name: str
    value: float
    target: float | None
    n: int

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        return None if self.target is None else self.value >= self.target

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "value": round(self.value, 4), "target": self.target, "met": self.met, "n": self.n}
