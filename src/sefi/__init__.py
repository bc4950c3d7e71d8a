"""Learn a person or a pet from one photo into a text-to-image model, so that the prompt still works.

Nothing heavy is imported until it is used. Folders are called rooms: each imports only rooms below it, in the order of
docs/architecture.md. The package `tiny_portraits` beside this one draws and trains the small model that comes with it
(`sefi world`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sefi.core import __version__ as __version__
from sefi.core.process import limit_spinning

if TYPE_CHECKING:
    from sefi.api import generate as generate, import_embedding as import_embedding, learn as learn
    from sefi.backbone.open import open_backbone as open_backbone
    from sefi.core.config import Config as Config
    from sefi.core.errors import SefiError as SefiError
    from sefi.diffusion.sampling import GeneratedImage as GeneratedImage
    from sefi.hosts.attach import attach as attach
    from sefi.identity.file import Identity as Identity
    from sefi.methods.registry import PRESETS as PRESETS
    from sefi.provenance.consent import Consent as Consent
    from sefi.provenance.save import save_image as save_image

# Where each public name is defined; `__getattr__` imports it from there when it is asked for.
DEFINED_IN = {
    "learn": "sefi.api",
    "generate": "sefi.api",
    "import_embedding": "sefi.api",
    "open_backbone": "sefi.backbone.open",
    "attach": "sefi.hosts.attach",
    "Identity": "sefi.identity.file",
    "GeneratedImage": "sefi.diffusion.sampling",
    "Config": "sefi.core.config",
    "PRESETS": "sefi.methods.registry",
    "SefiError": "sefi.core.errors",
    "Consent": "sefi.provenance.consent",
    "save_image": "sefi.provenance.save",
}
__all__ = [
    "PRESETS",
    "Config",
    "Consent",
    "GeneratedImage",
    "Identity",
    "SefiError",
    "attach",
    "generate",
    "import_embedding",
    "learn",
    "open_backbone",
    "save_image",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in DEFINED_IN:
        return getattr(import_module(DEFINED_IN[name]), name)
    raise AttributeError(f"module 'sefi' has no attribute {name!r}")


limit_spinning()
