"""Soft painting on a skia canvas: filled shapes with gradients, strokes, glows."""

import numpy as np
import skia

from tiny_portraits.drawing.traits import Colour, clip_colour, mix_colours

Place = tuple[float, float]
WHITE: Colour = (1.0, 1.0, 1.0)
BLACK: Colour = (0.0, 0.0, 0.0)


def pack_colour(colour: Colour, alpha: float = 1.0) -> int:
    """Return Skia's packed colour of RGB in [0, 1]."""
    r, g, b = (round(255 * c) for c in clip_colour(colour))
    return skia.Color(r, g, b, round(255 * alpha))


def lighten(colour: Colour, share: float) -> Colour:
    """Mix a colour with white for positive shares, with black for negative ones."""
    return mix_colours(colour, WHITE, share) if share >= 0 else mix_colours(colour, BLACK, -share)


def make_fill(colour: Colour, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    """Return a flat anti-aliased fill; blur is the standard deviation in canvas units."""
    paint = skia.Paint(AntiAlias=True, Color=pack_colour(colour, alpha))
    if blur:
        paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    return paint


def make_stroke(colour: Colour, width: float, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    """Return a round-capped stroke."""
    paint = make_fill(colour, alpha, blur)
    paint.setStyle(skia.Paint.kStroke_Style)
    paint.setStrokeWidth(width)
    paint.setStrokeCap(skia.Paint.kRound_Cap)
    paint.setStrokeJoin(skia.Paint.kRound_Join)
    return paint


def make_radial_fill(centre: Place, radius: float, inner: Colour, outer: Colour, *, fade: bool = False) -> skia.Paint:
    """Return a fill that goes from inner to outer over radius; fade makes the outer end transparent."""
    colours = [pack_colour(inner), pack_colour(outer, 0.0 if fade else 1.0)]
    shader = skia.GradientShader.MakeRadial(center=centre, radius=radius, colors=colours)
    return skia.Paint(AntiAlias=True, Shader=shader)


def make_linear_fill(start: Place, end: Place, first: Colour, last: Colour) -> skia.Paint:
    """Return a fill that goes from first to last along a line."""
    shader = skia.GradientShader.MakeLinear(points=[start, end], colors=[pack_colour(first), pack_colour(last)])
    return skia.Paint(AntiAlias=True, Shader=shader)


def make_polygon(*points: Place) -> skia.Path:
    """Return a closed path through points."""
    return make_curve(points[0], *points[1:], close=True)


def make_curve(start: Place, *segments: tuple[float, ...], close: bool = False) -> skia.Path:
    """Return a path of line (2 numbers), quadratic (4) and cubic (6) segments."""
    path = skia.PathBuilder()
    path.moveTo(*start)
    step = {2: path.lineTo, 4: path.quadTo, 6: path.cubicTo}
    for numbers in segments:
        step[len(numbers)](*numbers)
    if close:
        path.close()
    return path.detach()


def paint_ellipse(canvas: skia.Canvas, x: float, y: float, rx: float, ry: float, fill: skia.Paint) -> None:
    """Paint an axis-parallel ellipse by centre and half axes."""
    canvas.drawOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry), fill)


def paint_rectangle(
    canvas: skia.Canvas,
    left: float,
    top: float,
    right: float,
    bottom: float,
    fill: skia.Paint,
    corner: float = 0.0,
) -> None:
    """Paint a rectangle by its borders, with rounded corners."""
    canvas.drawRoundRect(skia.Rect.MakeLTRB(left, top, right, bottom), corner, corner, fill)


def make_surface(side: int) -> skia.Surface:
    """Return a square RGBA drawing surface of this many pixels."""
    return skia.Surface(side, side)


def read_pixels(surface: skia.Surface) -> np.ndarray:
    """Return the drawing as uint8 RGB `[side, side, 3]`."""
    return np.ascontiguousarray(surface.makeImageSnapshot().toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3])
