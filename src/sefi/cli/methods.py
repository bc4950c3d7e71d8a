"""`sefi methods`: every method, what it learns and adds, where it comes from."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from sefi.cli import options

if TYPE_CHECKING:
    from sefi.core.config import Config


def methods(as_json: options.AsJson = False) -> None:
    """List the methods with what they learn and add at the size of Stable Diffusion 1.4."""
    from sefi.backbone.sizes import empty_stable_diffusion
    from sefi.cli.output import answer
    from sefi.core.presets import PRESETS
    from sefi.methods import METHODS

    model = empty_stable_diffusion()
    record = {
        name: {
            **asdict(method.info),
            **asdict(method.weights(model, recipe_of(name))),
            "presets": [preset for preset, config in PRESETS.items() if config.method == name],
        }
        for name, method in METHODS.items()
    }
    lines = [f"{'method':19} {'numbers learned':>15} {'weights added':>14}  presets"]
    lines += [
        f"{name:19} {one['trained']:>15,} {one['added']:>14,}  {', '.join(one['presets'])}\n"
        f"{'':19} {one['title']}, {one['paper']}; {one['licence']}"
        for name, one in record.items()
    ]
    answer({"model": "Stable Diffusion 1.4", "methods": record}, "\n".join(lines), as_json=as_json, command="methods")


def recipe_of(name: str) -> "Config":
    """The published recipe of a method."""
    from sefi.core.presets import preset_named

    return preset_named("paper" if name == "sefi" else f"{name}-official")
