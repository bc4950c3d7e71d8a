"""Small images of every format with their metadata, and random changes of their bytes, lengths, chunks and fields."""

import io
import random
import struct
import zlib

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, PngImagePlugin

from sefi.provenance.metadata import XMP_KEY, format_xmp

SIDE = 48
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 40, 8192)
HEADER = 400  # bytes at the front of a file where most fields stand
PNG_START = b"\x89PNG\r\n\x1a\n"
XMP = format_xmp("1").encode()


def draw_image(mode: str, seed: int = 0) -> Image.Image:
    """Draw an image without symmetry, with some noise so that no format makes it tiny."""
    rows, columns = np.mgrid[:SIDE, : SIDE + 5]
    noise = np.random.default_rng(seed).integers(0, 40, (SIDE, SIDE + 5))
    bands = np.stack([rows * 4 + noise, columns * 4 + noise, rows + columns + noise, 255 - rows * 5 % 256], -1)
    image = Image.fromarray((bands % 256).astype(np.uint8), "RGBA")
    if mode == "I;16":
        return Image.fromarray((bands[..., 0] * 257 % 65536).astype(np.uint16))
    return image if mode == "RGBA" else image.convert(mode)


def encode_image(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """Encode an image in a format, with EXIF that turns it and with XMP where the format takes them."""
    memory, exif = io.BytesIO(), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    about = {"exif": exif.tobytes()} if kind in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "MPO") else {}
    if kind in ("JPEG", "WEBP", "AVIF"):
        about["xmp"] = XMP
    if kind in ("JPEG", "PNG", "WEBP") and mode == "RGB":
        about["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt(XMP_KEY, XMP.decode(), zip=bool(options.pop("zip", False)))
        text.add_text("parameters", "a photo\nSteps: 3", zip=True)
        about["pnginfo"] = text
    image = draw_image(mode)
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(memory, quality=60, **about)
    else:
        image.save(memory, format=kind, **about, **options)
    return memory.getvalue()


def encode_all() -> dict[str, list[bytes]]:
    """Return whole files of every format, by its name; several of one format, for their parts to be exchanged."""
    return {
        "PNG": [
            encode_image("PNG"), encode_image("PNG", "RGBA", zip=True), encode_image("PNG", "P", transparency=3),
            encode_image("PNG", "I;16"), encode_image("PNG", "1"), encode_image("PNG", "L", transparency=9),
        ],
        "JPEG": [
            encode_image("JPEG"), encode_image("JPEG", progressive=True), encode_image("JPEG", "CMYK"),
            encode_image("JPEG", "L"), encode_image("MPO", save_all=True, append_images=[draw_image("RGB", 1)]),
        ],
        "WEBP": [encode_image("WEBP"), encode_image("WEBP", "RGBA", lossless=True), encode_image("WEBP", quality=5)],
        "GIF": [
            encode_image("GIF", "P"), encode_image("GIF", "P", transparency=2),
            encode_image("GIF", "P", save_all=True, append_images=[draw_image("P", 1)]),
        ],
        "BMP": [encode_image("BMP"), encode_image("BMP", "P"), encode_image("BMP", "1")],
        "TIFF": [encode_image("TIFF"), encode_image("TIFF", "L", compression="tiff_lzw")],
        "HEIF": [encode_image("HEIF"), encode_image("HEIF", "RGBA")],
        "AVIF": [encode_image("AVIF", speed=10), encode_image("AVIF", "RGBA", speed=10)],
    }  # fmt: skip


# ------------------------------------------------------------------ changes that know the format


def split_png(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return type and data of every chunk."""
    chunks, place = [], len(PNG_START)
    while place + 8 <= len(content):
        length = struct.unpack(">I", content[place : place + 4])[0]
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def join_png(chunks: list[tuple[bytes, bytes]], chance: random.Random) -> bytes:
    """Return a PNG of chunks; now and then a length or a sum does not fit."""
    parts = [PNG_START]
    for kind, data in chunks:
        length, check = len(data), zlib.crc32(kind + data)
        if chance.random() < 0.03:
            length = chance.choice(EXTREMES)
        if chance.random() < 0.03:
            check ^= 1
        parts.append(struct.pack(">I", length) + kind + data + struct.pack(">I", check))
    return b"".join(parts)


def change_png(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Drop, repeat, exchange, resize or overwrite chunks; their sums fit again, so that what they say is read."""
    chunks = split_png(content)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(chunks))
        kind, data = chunks[place]
        match chance.randrange(7):
            case 0 if len(chunks) > 1:
                del chunks[place]
            case 1:
                chunks.insert(chance.randrange(len(chunks) + 1), chunks[place])
            case 2:
                chunks[place] = chance.choice(split_png(other))
            case 3:
                chunks[place] = kind, data[: chance.randrange(len(data) + 1)]
            case 4:  # a text that unpacks to megabytes
                bomb = zlib.compress(bytes(chance.choice([10**5, 3 * 10**7])))
                head = chance.choice([b"XML:com.adobe.xmp\0\1\0\0\0", b"parameters\0\0", b"icc\0\0"])
                chunks.insert(1, (chance.choice([b"iTXt", b"zTXt", b"iCCP"]), head + bomb))
            case 5:
                chunks[place] = chance.choice([b"IHDR", b"tRNS", b"PLTE", b"acTL", b"eXIf", b"gAMA", b"fdAT"]), data
            case _:
                chunks[0 if chance.random() < 0.5 else place] = kind, change_field(data or b"\0", chance)
    return join_png(chunks, chance)


def change_jpeg(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Change a segment: its length, its kind, its data; or put in one of another file, or EXIF of any orientation."""
    marks = [place for place in range(len(content) - 4) if content[place] == 0xFF and 0xC0 <= content[place + 1] < 0xFF]
    place = chance.choice(marks)
    changed = bytearray(content)
    match chance.randrange(5):
        case 0:
            changed[place + 2 : place + 4] = struct.pack(">H", chance.choice(EXTREMES) & 0xFFFF)
        case 1:
            changed[place + 1] = chance.choice([0xC0, 0xC1, 0xC2, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xE2, 0xFE])
        case 2:
            start = chance.randrange(len(other))
            changed[place:place] = other[start : start + chance.randrange(1, 700)]
        case 3:
            exif = make_exif(chance)
            changed[2:2] = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        case _:
            end = min(len(changed), place + 20)
            changed[place:end] = change_field(bytes(changed[place:end]), chance)
    return bytes(changed)


def make_exif(chance: random.Random) -> bytes:
    """Return EXIF whose orientation has any type, count and value, and whose directory may lead anywhere."""
    kind, count = chance.randrange(14), chance.choice([0, 1, 2, 2**16, 2**32 - 1])
    entry = struct.pack(">HHII", 0x0112, kind, count, chance.choice(EXTREMES))
    number, following = chance.choice([0, 1, 1, 1, 65535]), chance.choice([0, 8, 2**31])
    directory = struct.pack(">H", number) + entry + struct.pack(">I", following)
    return b"Exif\0\0MM\0*" + struct.pack(">I", chance.choice([8, 8, 8, 0, 2**32 - 1])) + directory


def change_boxes(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Change the size or the type of a box or chunk that a name of four letters begins (RIFF, HEIF, AVIF)."""
    names = [
        place
        for place in range(4, min(len(content), 4 * HEADER) - 4)
        if all(32 <= letter < 127 for letter in content[place : place + 4])
    ]
    place, changed = chance.choice(names), bytearray(content)
    order = chance.choice("<>")
    size = struct.pack(f"{order}I", chance.choice(EXTREMES))
    match chance.randrange(4):
        case 0:
            changed[place - 4 : place] = size
        case 1:
            changed[place + 4 : place + 8] = size
        case 2:
            changed[place : place + 4] = chance.choice(
                [b"ispe", b"iloc", b"iinf", b"meta", b"EXIF", b"VP8X", b"VP8L", b"ANIM", b"mdat", b"irot", b"grid"]
            )
        case _:
            start = chance.randrange(len(other))
            changed[place:place] = other[start : start + chance.randrange(1, 200)]
    return bytes(changed)


def change_field(content: bytes, chance: random.Random) -> bytes:
    """Overwrite one, two or four bytes near the front by an extreme number."""
    changed = bytearray(content)
    place = chance.randrange(min(len(changed), HEADER))
    size = chance.choice("BHI")
    number = chance.choice(EXTREMES) & (256 ** struct.calcsize(size) - 1)
    field = struct.pack(f"{chance.choice('<>')}{size}", number)
    changed[place : place + len(field)] = field
    return bytes(changed)


def change_any(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Flip bits, cut, splice two files, repeat a part or change a field, whatever the format."""
    changed = bytearray(content)
    place = chance.randrange(len(changed))
    match chance.randrange(5):
        case 0:
            for _ in range(chance.randint(1, 12)):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        case 1:
            del changed[place:]
        case 2:
            changed[place:] = other[chance.randrange(len(other)) :]
        case 3:
            changed[place:place] = changed[place : place + chance.randrange(1, 300)]
        case _:
            return change_field(content, chance)
    return bytes(changed)


STRUCTURES = {"PNG": change_png, "JPEG": change_jpeg, "WEBP": change_boxes, "HEIF": change_boxes, "AVIF": change_boxes}


def change_image(kind: str, files: list[bytes], chance: random.Random) -> bytes:
    """Change a file of a format in one or two ways, half of them such as only this format has."""
    content, other = chance.choice(files), chance.choice(files)
    for _ in range(chance.choice([1, 1, 2])):
        change = STRUCTURES.get(kind, change_any) if chance.random() < 0.5 else change_any
        try:
            content = change(content, other, chance) or b"\0"
        except (IndexError, ValueError):  # nothing of the structure is left
            content = change_any(content or b"\0", other, chance)
    return content
