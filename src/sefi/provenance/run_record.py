"""What explains a result: versions, device, settings, model and hashes of files, for images, identities and runs."""

import hashlib
import hmac
import io
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from sefi.core.config import Config, find_named_files
from sefi.core.errors import ConfigError
from sefi.core.files import is_regular_file, is_there
from sefi.core.reading import translate_file_errors

# Names in a record, and the distributions that may bring each; the first one that is installed counts.
LIBRARIES = {
    "sefi": ("sefi",),
    "torch": ("torch",),
    "diffusers": ("diffusers",),
    "transformers": ("transformers",),
    "numpy": ("numpy",),
    "pillow": ("pillow",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
}
PROCESSORS = Path("/proc/cpuinfo")
LONGEST_PROCESSORS = 1 << 16  # characters that are read of it: the first processor's lines
CHUNK = 1 << 20  # bytes

Text = Annotated[str, Field(max_length=10_000)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # SHA-256 in hex


class RecordPart(BaseModel):
    """A part of a record: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelRecord(RecordPart):
    """The text-to-image model.

    Attributes:
        source: what was opened: the embedded model, a hub id, or the last part of a path.
        fingerprint: `family:width:hash` of it.
        signature: 16 hex digits of the samples of its tensors.
    """

    source: Text = ""
    fingerprint: Text = ""
    signature: Text = ""


class CropRecord(RecordPart):
    """The square of a photo that was learned, in pixels of the upright photo.

    Attributes:
        photo_hash: of the photo's pixels, by `hash_with_salt`: whoever has the photo can tell that it is the one;
            nobody finds the photo by it, or that another identity is of the same; the square may show that. None where
            the photo was not at hand.
    """

    left: int
    top: int
    side: int
    photo_hash: Digest | None = None


class InitRecord(RecordPart):
    """The identity that learning started from: its name, and the SHA-256 of its tokens as float32."""

    name: Annotated[str, Field(max_length=200)]
    tokens: Digest


class ImageFileRecord(RecordPart):
    """An image that was written: its name in the folder, SHA-256 of the file, and of its pixels (RGB, row by row)."""

    file: Text
    sha256: Digest
    pixels_sha256: Digest


class RunRecord(RecordPart):
    """What explains the result of one generation, learning or benchmark.

    It holds no time, no path, and no name of a user or a machine. What the file around it states is not said twice: an
    identity's header and a benchmark's `run.json` have the settings, the seed and the model.

    Attributes:
        versions: of Python, sefi and the libraries that compute, by name.
        platform: operating system and processor architecture.
        device: cpu, cuda or mps; `device_name` is what its maker calls it.
        threads: that torch computes with on the CPU.
        preset: what the settings started from; empty where they were given as a whole, as in Python.
        identities: SHA-256 of each identity's file, by the name in prompts.
        inputs: SHA-256 of each image or detector that generation was given, by the option's name.
        crops: of every photo that was learned. A photo itself is not named, and its hash is salted.
        init: None where learning started from the class word.
        images: every image file that was written.
    """

    schema_version: Literal[1] = 1
    kind: Literal["generate", "learn", "bench"]
    versions: dict[str, str] = Field(default_factory=dict[str, str], max_length=64)
    platform: Text = ""
    device: Text = ""
    device_name: Text = ""
    dtype: Text = ""
    threads: int = Field(0, ge=0)
    preset: Text = ""
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    seed: int | None = None
    model: ModelRecord = ModelRecord()
    identities: dict[str, Digest] = Field(default_factory=dict[str, str], max_length=1000)
    inputs: dict[str, Digest] = Field(default_factory=dict[str, str], max_length=64)
    crops: tuple[CropRecord, ...] = ()
    init: InitRecord | None = None
    images: tuple[ImageFileRecord, ...] = ()

    @classmethod
    def describe_machine(cls, kind: Literal["generate", "learn", "bench"], device: str, dtype: str) -> Self:
        """Return a record with versions, platform, device, dtype and threads; the rest is added to it.

        Args:
            device: as torch writes it, such as `cpu` or `cuda:0`.
            dtype: with or without `torch.` in front.
        """
        import torch  # noqa: PLC0415  reading a record needs no torch

        return cls(
            kind=kind,
            versions=collect_versions(),
            platform=f"{platform.system()} {platform.machine()}",
            device=device.partition(":")[0],
            device_name=find_device_name(device),
            dtype=dtype.removeprefix("torch."),
            threads=torch.get_num_threads(),
        )

    def add(self, **facts: object) -> Self:
        """Return the record with further facts, which are checked."""
        return type(self).model_validate({**dict(self), **facts})

    def dump(self) -> dict[str, Any]:
        """Return it as plain values, ready for JSON; what was not stated is left out."""
        return self.model_dump(mode="json", exclude_defaults=True) | {
            "schema_version": self.schema_version,
            "kind": self.kind,
        }


def collect_versions() -> dict[str, str]:
    """Return the versions of Python, sefi and the libraries that compute; none of them is imported."""
    found = {"python": platform.python_version()}
    for name, distributions in LIBRARIES.items():
        for distribution in distributions:
            try:
                found[name] = version(distribution)
            except PackageNotFoundError:
                continue
            break
    return found


def find_device_name(device: str) -> str:
    """Return what the maker calls a device: the GPU's name, or the processor's with the instructions that torch uses.

    Args:
        device: as torch writes it, such as `cpu` or `cuda:0`.
    """
    import torch  # noqa: PLC0415  as above

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device.startswith("mps"):
        return "Apple GPU"
    return f"{read_processor_name()} ({torch.backends.cpu.get_cpu_capability()})"


def read_processor_name() -> str:
    """Return the processor's name where the system says it, else its architecture."""
    try:
        with PROCESSORS.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(LONGEST_PROCESSORS).splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def shorten_source(source: str) -> str:
    """Return what was opened without where it lies: a path's last part; names of models and hub ids as they are.

    >>> shorten_source("tiny-portraits"), shorten_source("owner/model"), shorten_source("/home/ada/models/sd14/")
    ('tiny-portraits', 'owner/model', 'sd14')
    """
    path = Path(source)
    is_path = path.is_absolute() or source.count("/") > 1 or source.startswith((".", "~")) or is_there(path)
    return path.name or path.resolve().name if is_path else source


def compute_file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()


def hash_with_salt(digest: str, salt: bytes) -> str:
    """Return a SHA-256 of something as one that only those compute who have it and the salt, in hex."""
    return hmac.new(salt, digest.encode(), hashlib.sha256).hexdigest()


def hash_input_files(inputs: Mapping[str, Path | None]) -> dict[str, str]:
    """Return the SHA-256 of every file that is there, by name; folders have none."""
    return {
        name: compute_file_digest(path) for name, path in inputs.items() if path is not None and is_regular_file(path)
    }


def hash_named_files(config: Config) -> dict[str, str]:
    """Return the SHA-256 of every file that a setting names, by the setting; those that are not there are left out.

    Raises:
        ConfigError: one cannot be read.
    """
    files = {setting: Path(named) for setting, named in find_named_files(config).items()}
    with translate_file_errors("A file to learn with", ConfigError, "cannot be read", "Make it readable."):
        return hash_input_files(files)


def record_image(name: str, content: bytes) -> ImageFileRecord:
    """Return the hashes of an image file by the bytes that were written: the file may be moved or deleted by now.

    Args:
        name: of the file in its folder.

    Raises:
        OSError: it is no image.
    """
    from PIL import Image  # noqa: PLC0415  reading a record needs no images

    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as image:
        pixels = hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
    return ImageFileRecord(file=name, sha256=hashlib.sha256(content).hexdigest(), pixels_sha256=pixels)
