"""Styles and kinds of light that the fifth version adds."""

from collections.abc import Callable

import cv2
import numpy as np
import skia

from sefi.world.brush import argb
from sefi.world.person import Colour

# Colours at the start and the end of a gradient, each with its opacity, and the direction in units of the square.
GRADIENTS: dict[str, tuple[tuple[Colour, float], tuple[Colour, float], tuple[float, float]]] = {
    "sunset": (((0.55, 0.25, 0.62), 0.30), ((1.0, 0.52, 0.16), 0.42), (0.0, 1.0)),
    "neon": (((1.0, 0.10, 0.62), 0.40), ((0.05, 0.75, 1.0), 0.40), (1.0, 0.0)),
    "fog": (((0.88, 0.90, 0.93), 0.30), ((0.90, 0.92, 0.94), 0.62), (0.0, 1.0)),
}


def paint_light(canvas: skia.Canvas, light: str, side: float) -> None:
    """Tint the whole picture: a gradient, or for dim light a dark surround with a brighter middle."""
    if light == "dim":
        colours = [argb((0.02, 0.02, 0.06), 0.22), argb((0.02, 0.02, 0.06), 0.66)]
        shader = skia.GradientShader.MakeRadial(center=(side / 2, side * 0.45), radius=side * 0.7, colors=colours)
    else:
        (first, start), (last, end), (x, y) = GRADIENTS[light]
        colours = [argb(first, start), argb(last, end)]
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
