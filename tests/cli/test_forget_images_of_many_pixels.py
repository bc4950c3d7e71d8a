"""An image of more pixels than Pillow opens stops no command, and is forgotten as any other."""

import hashlib
import io
import json
import shutil
import struct
import zlib

import pytest
from PIL import Image

from sefi.core.errors import OutputError
from sefi.provenance.metadata import NOT_LEARNED_YET, format_xmp
from sefi.provenance.save import encode_photo, read_marking, read_named_identities

ADA = hashlib.sha256(b"ada").hexdigest()
SIDE = 20_000  # pixels; Pillow refuses more than 178,956,970 and warns from half of it on


def enlarge_png(content, side=SIDE):
    """Return a PNG whose header states another size."""
    header = content[12:16] + struct.pack(">II", side, side) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def make_image(kind, digests, side=SIDE):
    """Return an image of a few bytes that states very many pixels and names identities."""
    image, content = Image.new("RGB", (20, 20)), io.BytesIO()
    if kind == "PNG":
        return enlarge_png(encode_photo(image, digests).content, side)
    image.save(
        content,
        kind,
        xmp=format_xmp("1", identities=digests).encode(),
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    content = content.getvalue()
    if kind == "JPEG":
        start = content.index(b"\xff\xc0") + 5
        return content[:start] + struct.pack(">HH", side, side) + content[start + 4 :]
    side = 16_383  # the largest of a WebP
    canvas = (side - 1).to_bytes(3, "little") * 2
    start = content.index(b"VP8X") + 12
    return content[:start] + canvas + content[start + 6 :]


@pytest.mark.parametrize("side", [11_000, SIDE])  # where a warning would be an error, and beyond
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_words_of_an_image_of_any_size_are_read(tmp_path, kind, side):
    path = tmp_path / "image"
    path.write_bytes(make_image(kind, [ADA], side))
    assert read_named_identities(path) == {ADA[:16]}
    assert read_marking(path) is (None if kind == "PNG" else True)


def test_it_is_forgotten_or_named(home, sefi, ada):
    work = home / "work"
    shutil.copy(ada, "ada.safetensors")
    digest = hashlib.sha256(ada.read_bytes()).hexdigest()
    for name, kind, named in (("a", "PNG", digest), ("b", "JPEG", digest), ("c", "PNG", ADA), ("d", "WEBP", digest)):
        (work / name).write_bytes(make_image(kind, [named]))
    with pytest.raises(OutputError, match="too many pixels"):
        read_named_identities(work / "d")
    found = sefi("forget", "ada", "--yes", "--json")
    assert found.exit_code == 0, found.output
    assert [one["file"] for one in json.loads(found.stdout)["unproven"]] == [str(work / "d")]
    assert sorted(path.name for path in work.iterdir()) == ["c", "d"]


def test_a_picture_of_a_crop_may_be_in_the_place_of_one(tmp_path, refused, portrait, model_folder):
    crop = tmp_path / "crop.png"
    crop.write_bytes(make_image("PNG", [ADA]))
    more = ("--model", model_folder, "--no-crop", "--steps", 1, "--out", tmp_path / "a.safetensors")
    assert "exists" in refused("learn", portrait, "--name", "a", "--show-crop", crop, *more)
    crop.write_bytes(make_image("WEBP", [NOT_LEARNED_YET]))
    assert "too many pixels" in refused("learn", portrait, "--name", "a", "--show-crop", crop, *more)
