"""Soft painting on a skia canvas: filled shapes with gradients, strokes, glows."""

import numpy as np
import skia

from sefi.world.person import Colour, clip, mix

Point = tuple[float, float]
WHITE: Colour = (1.0, 1.0, 1.0)
BLACK: Colour = (0.0, 0.0, 0.0)


def argb(colour: Colour, alpha: float = 1.0) -> int:
    """Skia's packed colour of RGB in [0, 1]."""
    r, g, b = (round(255 * c) for c in clip(colour))
    return skia.Color(r, g, b, round(255 * alpha))


def lighter(colour: Colour, share: float) -> Colour:
    """Towards white for positive shares, towards black for negative ones."""
    return mix(colour, WHITE, share) if share >= 0 else mix(colour, BLACK, -share)


def paint(colour: Colour, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    """A flat anti-aliased fill; blur is the standard deviation in canvas units."""
    made = skia.Paint(AntiAlias=True, Color=argb(colour, alpha))
    if blur:
        made.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    return made


def pen(colour: Colour, width: float, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    """A round-capped stroke."""
    made = paint(colour, alpha, blur)
    made.setStyle(skia.Paint.kStroke_Style)
    made.setStrokeWidth(width)
    made.setStrokeCap(skia.Paint.kRound_Cap)
    made.setStrokeJoin(skia.Paint.kRound_Join)
    return made


def radial(centre: Point, radius: float, inner: Colour, outer: Colour, *, fade: bool = False) -> skia.Paint:
    """A fill that goes from inner to outer over radius; fade makes the outer end transparent."""
    colours = [argb(inner), argb(outer, 0.0 if fade else 1.0)]
    shader = skia.GradientShader.MakeRadial(center=centre, radius=radius, colors=colours)
    return skia.Paint(AntiAlias=True, Shader=shader)


def linear(start: Point, end: Point, first: Colour, last: Colour) -> skia.Paint:
    """A fill that goes from first to last along a line."""
    shader = skia.GradientShader.MakeLinear(points=[start, end], colors=[argb(first), argb(last)])
    return skia.Paint(AntiAlias=True, Shader=shader)


def polygon(*points: Point) -> skia.Path:
    """A closed path through points."""
    return curve(points[0], *points[1:], close=True)


def curve(start: Point, *segments: tuple[float, ...], close: bool = False) -> skia.Path:
    """A path of line (2 numbers), quadratic (4) and cubic (6) segments."""
    path = skia.PathBuilder()
    path.moveTo(*start)
    step = {2: path.lineTo, 4: path.quadTo, 6: path.cubicTo}
    for numbers in segments:
        step[len(numbers)](*numbers)
    if close:
        path.close()
    return path.detach()


def ellipse(canvas: skia.Canvas, x: float, y: float, rx: float, ry: float, fill: skia.Paint) -> None:
    """An axis-parallel ellipse by centre and half axes."""
    canvas.drawOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry), fill)


def rectangle(
    canvas: skia.Canvas,
    left: float,
    top: float,
    right: float,
    bottom: float,
    fill: skia.Paint,
    corner: float = 0.0,
) -> None:
    """A rectangle by its borders, with rounded corners."""
    canvas.drawRoundRect(skia.Rect.MakeLTRB(left, top, right, bottom), corner, corner, fill)


def new_surface(side: int) -> skia.Surface:
    """A square RGBA drawing surface of this many pixels."""
    return skia.Surface(side, side)


def pixels(surface: skia.Surface) -> np.ndarray:
    """The drawing as uint8 RGB `[side, side, 3]`."""
    return np.ascontiguousarray(surface.makeImageSnapshot().toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3])
