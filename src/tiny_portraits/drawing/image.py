"""Drawing an image of its content, in any style and light, and the truth about it."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import skia

from tiny_portraits.drawing.body import HELD, make_torso_path, paint_body, paint_handshake, paint_umbrella
from tiny_portraits.drawing.brush import make_fill, make_surface, pack_colour, read_pixels
from tiny_portraits.drawing.content import ImageContent, Pet, Subject
from tiny_portraits.drawing.face import (
    apply_attributes,
    measure_half_width,
    paint_back_hair,
    paint_head,
    place_landmarks,
)
from tiny_portraits.drawing.fur import paint_pet, place_pet_landmarks
from tiny_portraits.drawing.held_and_worn import GARMENT_PAINTERS, NEW_HELD, paint_crown
from tiny_portraits.drawing.scenery import PAINTED
from tiny_portraits.drawing.traits import HAIR_STYLES, Colour

UNITS = 128
SIDE = 96
BLOCKS = 24
EVERY_HELD = HELD | NEW_HELD
LIGHT_TINTS = {"warm": (1.0, 0.72, 0.36), "cold": (0.40, 0.58, 1.0)}
# Colours at the start and the end of a gradient, each with its opacity, and the direction in units of the square.
GRADIENTS: dict[str, tuple[tuple[Colour, float], tuple[Colour, float], tuple[float, float]]] = {
    "sunset": (((0.55, 0.25, 0.62), 0.30), ((1.0, 0.52, 0.16), 0.42), (0.0, 1.0)),
    "neon": (((1.0, 0.10, 0.62), 0.40), ((0.05, 0.75, 1.0), 0.40), (1.0, 0.0)),
    "fog": (((0.88, 0.90, 0.93), 0.30), ((0.90, 0.92, 0.94), 0.62), (0.0, 1.0)),
}


def draw(content: ImageContent, side: int = SIDE) -> np.ndarray:
    """Draw an image, uint8 RGB `[side, side, 3]`; the same content always gives the same pixels."""
    surface = make_surface(side)
    with surface as canvas:
        canvas.scale(side / UNITS, side / UNITS)
        draw_background(canvas, content)
        for subject in content.subjects:
            draw_subject(canvas, subject, content.light_side)
        if content.interaction == "shaking hands":
            paint_handshake(canvas, *content.subjects)
        for pet in content.pets:
            draw_pet(canvas, pet, content.light_side)
        if content.light in LIGHT_TINTS:
            canvas.drawPaint(make_fill(LIGHT_TINTS[content.light], 0.20))
        elif content.light:
            paint_light(canvas, content.light, UNITS)
    return restyle(read_pixels(surface), content)


def draw_background(canvas: skia.Canvas, content: ImageContent) -> None:
    """Draw the scene, out of focus where the camera blurs it."""
    canvas.save()
    canvas.scale(UNITS, UNITS)
    if content.camera == "blurred background":
        canvas.saveLayer(None, skia.Paint(ImageFilter=skia.ImageFilters.Blur(0.022, 0.022, skia.TileMode.kClamp)))
    PAINTED[content.scene](canvas, np.random.default_rng(content.scene_seed))
    if content.camera == "blurred background":
        canvas.restore()
    canvas.restore()


def draw_clothes(canvas: skia.Canvas, subject: Subject) -> None:
    """Draw what the garment adds to the plain torso."""
    canvas.save()
    if subject.garment not in ("scarf", "hoodie", "spacesuit"):
        canvas.clipPath(make_torso_path(), True)
    GARMENT_PAINTERS[subject.garment](canvas, subject)
    canvas.restore()


def draw_subject(canvas: skia.Canvas, subject: Subject, light_side: float) -> None:
    """Draw one person from the back to the front."""
    canvas.save()
    canvas.translate(subject.x, subject.y)
    canvas.scale(subject.scale, subject.scale)
    if subject.action == "umbrella":
        paint_umbrella(canvas, subject)
    canvas.save()
    canvas.rotate(subject.tilt)
    paint_back_hair(canvas, subject)
    canvas.restore()
    paint_body(canvas, subject, light_side)
    if subject.garment:
        draw_clothes(canvas, subject)
    canvas.save()
    canvas.rotate(subject.tilt)
    paint_head(canvas, subject, light_side)
    if "crown" in subject.attributes:
        paint_crown(canvas, subject)
    canvas.restore()
    if subject.action:
        EVERY_HELD[subject.action](canvas, subject)
    canvas.restore()


def draw_pet(canvas: skia.Canvas, pet: Pet, light_side: float) -> None:
    """Draw one animal."""
    canvas.save()
    canvas.translate(pet.x, pet.y)
    canvas.scale(pet.scale, pet.scale)
    paint_pet(canvas, pet, light_side)
    canvas.restore()


def restyle(image: np.ndarray, content: ImageContent) -> np.ndarray:
    """Turn the photo-like drawing into the asked style."""
    if content.style == "drawing":
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        edges = cv2.divide(grey, 255 - cv2.GaussianBlur(255 - grey, (0, 0), 3.0 * len(image) / UNITS), scale=246)
        shade = cv2.addWeighted(edges, 0.72, grey, 0.28, 0)
        return np.stack([shade, shade * 0.985, shade * 0.95], axis=-1).astype(np.uint8)
    if content.style == "painting":
        return make_painting(image, content.scene_seed)
    if content.style == "pixel art":
        return make_pixel_art(image)
    return NEW_STYLES[content.style](image, content.scene_seed) if content.style in NEW_STYLES else image


def make_pixel_art(image: np.ndarray) -> np.ndarray:
    """Turn a drawing into pixel art: few blocks of few, strong colours.

    One block is one cell of the latents (4 pixels of 96): other sizes come back from the autoencoder blurred.
    """
    small = cv2.resize(image, (BLOCKS, BLOCKS), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = small.mean(axis=-1, keepdims=True)
    strong = (grey + 1.35 * (small - grey) - 128) * 1.15 + 128
    levels = (np.round(strong / 32) * 32).clip(0, 255).astype(np.uint8)
    return cv2.resize(levels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def make_painting(image: np.ndarray, seed: int) -> np.ndarray:
    """Turn a drawing into an oil painting: flat patches (Kuwahara et al. 1976), strokes, varnish, dark corners."""
    side = len(image)
    flat = apply_kuwahara(image.astype(np.float32), max(2, round(side / 44)))
    grain = np.random.default_rng(seed).normal(0, 1, (48, 48)).astype(np.float32)
    strokes = cv2.resize(grain, (side, side), interpolation=cv2.INTER_CUBIC)
    slant = np.eye(max(3, side // 16), dtype=np.float32)[::-1] / max(3, side // 16)
    strokes = cv2.filter2D(strokes, -1, np.ascontiguousarray(slant))
    across = np.linspace(-1, 1, side, dtype=np.float32)
    corner = np.clip(1.08 - 0.30 * (across[:, None] ** 2 + across[None] ** 2), 0, 1)
    varnish = flat * np.array([1.0, 0.93, 0.76], np.float32) + np.array([14, 6, -6], np.float32)
    return np.clip((varnish + 10 * strokes[..., None]) * corner[..., None], 0, 255).astype(np.uint8)


def apply_kuwahara(image: np.ndarray, radius: int) -> np.ndarray:
    """Give every pixel the mean of the calmest of the four squares that it is a corner of; float32 `[h, w, 3]`."""
    size, padded = radius + 1, cv2.copyMakeBorder(image, radius, radius, radius, radius, cv2.BORDER_REFLECT)
    mean = cv2.blur(padded, (size, size), anchor=(0, 0))
    spread = (cv2.blur(padded**2, (size, size), anchor=(0, 0)) - mean**2).sum(-1)
    h, w = image.shape[:2]
    places = [(y, x) for y in (0, radius) for x in (0, radius)]
    calmest = np.argmin([spread[y : y + h, x : x + w] for y, x in places], axis=0)
    return np.choose(calmest[..., None], [mean[y : y + h, x : x + w] for y, x in places]).astype(np.float32)


def place_points(points: list[tuple[float, float]], head: Subject | Pet) -> np.ndarray:
    """Return points in head coordinates as the image's, `[point, 2]`: tilted, enlarged, moved."""
    angle = np.deg2rad(head.tilt)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.array(points) @ turn.T * head.scale + np.array([head.x, head.y])


def describe_face(subject: Subject) -> dict[str, Any]:
    """Return where the face is: box `[left, top, width, height]` and five landmarks, in units of a 128-unit square."""
    points = place_points(place_landmarks(subject.person, subject.turn), subject)
    w = measure_half_width(apply_attributes(subject)) * subject.scale
    top, bottom = subject.y - 0.8 * subject.scale, subject.y + subject.scale
    return {
        "box": [round(float(v), 2) for v in (subject.x - w, top, 2 * w, bottom - top)],
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in points],
    }


def describe_pet(pet: Pet) -> dict[str, Any]:
    """Return what an animal is and where its face is, ready for JSON."""
    points = place_points(place_pet_landmarks(pet), pet)
    return {
        "kind": pet.animal.kind,
        "coordinates": list(pet.animal.coordinates),
        "traits": pet.animal.get_traits(),
        "attributes": list(pet.attributes),
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in points],
    }


def locate_heads(content: ImageContent) -> list[tuple[float, float, float, np.ndarray]]:
    """Return the centre x, y, half height and five landmarks of every face, people's and animals', in image units."""
    people = [(s.x, s.y, s.scale, np.array(describe_face(s)["landmarks"])) for s in content.subjects]
    return people + [(p.x, p.y, p.scale, np.array(describe_pet(p)["landmarks"])) for p in content.pets]


def describe_content(content: ImageContent) -> dict[str, Any]:
    """Return everything that an evaluator may be asked about the image, ready for JSON."""
    subjects = [
        {
            "coordinates": list(s.person.coordinates),
            "traits": s.person.get_traits(),
            "hair_style": HAIR_STYLES.index(s.person.hair_style),
            "attributes": list(s.attributes),
            "action": s.action,
            **({"garment": s.garment} if s.garment else {}),
            **describe_face(s),
        }
        for s in content.subjects
    ]
    return {
        "scene": content.scene,
        "style": content.style,
        "light": content.light,
        **({"camera": content.camera} if content.camera else {}),
        "interaction": content.interaction,
        "subjects": subjects,
        "pets": [describe_pet(p) for p in content.pets],
    }


def paint_light(canvas: skia.Canvas, light: str, side: float) -> None:
    """Tint the whole image: a gradient, or for dim light a dark surround with a brighter middle."""
    if light == "dim":
        colours = [pack_colour((0.02, 0.02, 0.06), 0.22), pack_colour((0.02, 0.02, 0.06), 0.66)]
        shader = skia.GradientShader.MakeRadial(center=(side / 2, side * 0.45), radius=side * 0.7, colors=colours)
    else:
        (first, start), (last, end), (x, y) = GRADIENTS[light]
        colours = [pack_colour(first, start), pack_colour(last, end)]
        shader = skia.GradientShader.MakeLinear(points=[(0, 0), (side * x, side * y)], colors=colours)
    canvas.drawPaint(skia.Paint(AntiAlias=True, Shader=shader))


def make_grey(image: np.ndarray, _seed: int) -> np.ndarray:
    """Return a black and white photo with strong contrast."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    strong = np.clip((grey - 128) * 1.25 + 126, 0, 255).astype(np.uint8)
    return np.repeat(strong[..., None], 3, axis=-1)


def make_chalk(image: np.ndarray, seed: int) -> np.ndarray:
    """Return white chalk on a green board: bright edges and half of the light."""
    side = len(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = cv2.GaussianBlur(grey, (0, 0), side / 160)
    lines = np.abs(smooth - cv2.GaussianBlur(grey, (0, 0), side / 48)) * 4.5
    grain = np.random.default_rng(seed).uniform(0.75, 1.0, (96, 96)).astype(np.float32)
    chalk = np.clip(lines + 0.30 * grey, 0, 235) * cv2.resize(grain, (side, side), interpolation=cv2.INTER_LINEAR)
    board = np.array([32, 58, 48], np.float32)
    return np.clip(board + chalk[..., None] * (255 - board) / 255, 0, 255).astype(np.uint8)


def make_watercolour(image: np.ndarray, seed: int) -> np.ndarray:
    """Return pale washes with darker rims on paper, running out to white at the borders."""
    side = len(image)
    wash = cv2.bilateralFilter(image, 0, 48, side / 40).astype(np.float32)
    wash = wash + 0.42 * (255 - wash)
    rims = np.abs(cv2.Laplacian(cv2.GaussianBlur(wash, (0, 0), side / 128), cv2.CV_32F)).mean(-1, keepdims=True)
    paper = np.random.default_rng(seed).normal(0, 1, (24, 24)).astype(np.float32)
    blotch = cv2.resize(paper, (side, side), interpolation=cv2.INTER_CUBIC)[..., None]
    across = np.abs(np.linspace(-1, 1, side, dtype=np.float32))
    border = np.clip((np.maximum(across[:, None], across[None])[..., None] + 0.03 * blotch - 0.86) / 0.10, 0, 1)
    return np.clip((wash - 3.0 * rims + 7 * blotch) * (1 - border) + 252 * border, 0, 255).astype(np.uint8)


def make_comic(image: np.ndarray, _seed: int) -> np.ndarray:
    """Return flat, strong colours with black outlines and dots in the middle tones."""
    side = len(image)
    smooth = cv2.bilateralFilter(image, 0, 40, side / 48)
    value = smooth.max(-1, keepdims=True).astype(np.float32) + 1
    # Only the brightness has steps: steps of each channel would change the hue, and so the colour's name.
    flat = smooth * np.maximum(np.round(value / 51) * 51, 26) / value
    grey = flat.mean(-1, keepdims=True)
    strong = np.clip(grey + 1.5 * (flat - grey), 0, 255)
    tone = cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edge = cv2.GaussianBlur(tone, (0, 0), side / 110) - cv2.GaussianBlur(tone, (0, 0), side / 200)
    rows, columns = np.mgrid[:side, :side] * (2 * np.pi * 32 / side)
    dots = (np.sin(rows) * np.sin(columns) > 0.45) & (tone < 165) & (tone > 70)
    inked = np.where(dots[..., None], strong * 0.80, strong)
    return np.where(edge[..., None] > 5.5, 12, inked).clip(0, 255).astype(np.uint8)


NEW_STYLES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "watercolour": make_watercolour,
    "comic": make_comic,
    "black and white": make_grey,
    "chalk": make_chalk,
}
