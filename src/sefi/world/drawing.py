"""COMPOSER: a picture's description to its pixels and to the truth about it."""

from typing import Any

import cv2
import numpy as np
import skia

from sefi.world.body import HELD, paint_body, paint_umbrella
from sefi.world.brush import new_surface, paint, pixels
from sefi.world.face import half_width, landmarks, paint_back_hair, paint_head
from sefi.world.person import HAIR_STYLES
from sefi.world.picture import Picture, Subject
from sefi.world.scenery import PAINTED

UNITS = 128
SIDE = 96
LIGHT_TINTS = {"warm": (1.0, 0.72, 0.36), "cold": (0.40, 0.58, 1.0)}


def draw(picture: Picture, side: int = SIDE) -> np.ndarray:
    """The picture as uint8 RGB `[side, side, 3]`; the same description always gives the same pixels."""
    surface = new_surface(side)
    with surface as canvas:
        canvas.scale(side / UNITS, side / UNITS)
        canvas.save()
        canvas.scale(UNITS, UNITS)
        PAINTED[picture.scene](canvas, np.random.default_rng(picture.scene_seed))
        canvas.restore()
        for subject in picture.subjects:
            draw_subject(canvas, subject, picture.light_side)
        if picture.light:
            canvas.drawPaint(paint(LIGHT_TINTS[picture.light], 0.20))
    return restyle(pixels(surface), picture)


def draw_subject(canvas: skia.Canvas, subject: Subject, light_side: float) -> None:
    """One person from the back to the front."""
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
    canvas.save()
    canvas.rotate(subject.tilt)
    paint_head(canvas, subject, light_side)
    canvas.restore()
    if subject.action:
        HELD[subject.action](canvas, subject)
    canvas.restore()


def restyle(image: np.ndarray, picture: Picture) -> np.ndarray:
    """The photo-like drawing turned into the asked style."""
    if picture.style == "drawing":
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        edges = cv2.divide(grey, 255 - cv2.GaussianBlur(255 - grey, (0, 0), 3.0 * len(image) / UNITS), scale=246)
        shade = cv2.addWeighted(edges, 0.72, grey, 0.28, 0)
        return np.stack([shade, shade * 0.985, shade * 0.95], axis=-1).astype(np.uint8)
    if picture.style == "painting":
        smooth = cv2.medianBlur(cv2.bilateralFilter(image, 5, 60, 4), 5)
        hsv = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 1] = np.clip(hsv[..., 1] * 1.35 + 8, 0, 255)
        hsv[..., 2] = np.round(hsv[..., 2] / 26) * 26
        return cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)
    if picture.style == "pixel art":
        small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
        levels = (np.round(small.astype(np.float32) / 32) * 32).clip(0, 255).astype(np.uint8)
        return cv2.resize(levels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return image


def face_truth(subject: Subject) -> dict[str, Any]:
    """Where the face is: box `[left, top, width, height]` and five landmarks, in units of a 128-unit square."""
    angle = np.deg2rad(subject.tilt)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([subject.x, subject.y])
    points = np.array(landmarks(subject.person, subject.turn)) @ turn.T * subject.scale + centre
    w = half_width(subject.person) * subject.scale
    top, bottom = subject.y - 0.8 * subject.scale, subject.y + subject.scale
    return {
        "box": [round(float(v), 2) for v in (subject.x - w, top, 2 * w, bottom - top)],
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in points],
    }


def truth(picture: Picture) -> dict[str, Any]:
    """Everything a judge may be asked about the picture, ready for JSON."""
    subjects = [
        {
            "coordinates": list(s.person.coordinates),
            "traits": s.person.traits(),
            "hair_style": HAIR_STYLES.index(s.person.hair_style),
            "attributes": list(s.attributes),
            "action": s.action,
            **face_truth(s),
        }
        for s in picture.subjects
    ]
    return {
        "scene": picture.scene,
        "style": picture.style,
        "light": picture.light,
        "subjects": subjects,
    }
