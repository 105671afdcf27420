"""Drawing grounded text: labelled boxes on the picture, the text with coloured phrases below."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from kosmos2_jax.errors import ImageError
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.vision import text as text_tools
from kosmos2_jax.vision.labels import Rect, place_labels
from kosmos2_jax.vision.preprocessing import MAX_PIXELS

Colour = tuple[int, int, int]

# Told apart also by most colour-blind people, and visible on dark and light pictures.
_PALETTE: tuple[Colour, ...] = (
    (230, 57, 70), (29, 120, 220), (255, 183, 3), (42, 157, 80), (157, 78, 221),
    (0, 180, 216), (251, 113, 33), (214, 51, 132), (138, 201, 38), (121, 85, 72),
)  # fmt: skip

_INK: Colour = (24, 24, 27)
_PAPER: Colour = (255, 255, 255)
_BACKDROP: Colour = (228, 228, 231)

# Smaller pictures are enlarged until labels can be read on them.
_MIN_LONG_SIDE = 512
# Narrower pictures get margins, so that there is room for labels and caption.
_MIN_CANVAS = (256, 128)


def draw_grounded(
    image: Image.Image,
    grounded: GroundedText,
    *,
    caption: bool = True,
    min_long_side: int = _MIN_LONG_SIDE,
) -> Image.Image:
    """Returns the picture with every box of the text, labelled, and the text underneath.

    All boxes of a phrase have one colour, which also marks the phrase in the text. Labels lie
    inside the picture and never on each other; one that finds no room is left out. Reversed boxes
    are put right and boxes beyond the picture cut, as models do produce such; a box with NaN is
    not drawn. Small pictures are enlarged.

    Args:
      image: the whole picture, of any mode.
      grounded: text with boxes normalised to the picture.
      caption: whether to write the text under the picture.
      min_long_side: pixels that the longer side is brought to at least.

    Returns:
      A new RGB picture; the given one stays as it is.

    Raises:
      ImageError: the picture is so narrow that enlarging it would take `MAX_PIXELS` or more.
    """
    canvas, area = _make_canvas(image, min_long_side)
    font_size = max(15, round(0.019 * math.sqrt(canvas.width * canvas.height)))
    items = [
        (pixel_box(box, area), span_colour(i), _label(span, j))
        for i, span in enumerate(grounded.spans)
        for j, box in enumerate(span.boxes)
        if is_drawable(box)
    ]
    line = max(3, round(font_size / 7))
    pen = ImageDraw.Draw(canvas, "RGBA")
    # Large boxes first, so that the lines of small ones stay whole.
    for rect, colour, _ in sorted(items, key=lambda item: -item[0].width * item[0].height):
        draw_box(pen, rect, colour, line)
    _draw_labels(pen, items, canvas.size, font_size)
    if caption and grounded.text.strip():
        return _add_caption(canvas, grounded, font_size)
    return canvas


def span_colour(number: int) -> Colour:
    """Returns the colour of the n-th phrase; colours repeat, in other shades, after ten."""
    red, green, blue = _PALETTE[number % len(_PALETTE)]
    hue, light, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    light *= (1.0, 0.6, 1.35)[number // len(_PALETTE) % 3]
    shade = colorsys.hls_to_rgb(hue, min(light, 0.85), saturation)
    return tuple(round(255 * value) for value in shade)


def is_drawable(box: Box) -> bool:
    """Says whether all corners are finite numbers."""
    return all(math.isfinite(value) for value in box)


def pixel_box(box: Box, area: Rect) -> Rect:
    """Returns a normalised box in pixels of `area`, corners put in order and cut to it.

    The result has at least one pixel, so that even a box beyond the picture is seen at its edge.
    """
    sides = ((area.left, area.width), (area.top, area.height))
    corners = []
    for (start, length), pair in zip(sides, ((box[0], box[2]), (box[1], box[3])), strict=True):
        low, high = (start + round(min(max(v, 0.0), 1.0) * length) for v in sorted(pair))
        low = min(low, start + length - 1)
        corners.append((low, max(high, low + 1)))
    (left, right), (top, bottom) = corners
    return Rect(left, top, right, bottom)


def draw_box(
    pen: ImageDraw.ImageDraw, rect: Rect, colour: Colour, width: int, dashed: bool = False
) -> None:
    """Draws the outline of a rectangle, inside of it, with a faint dark rim that lifts it off."""
    if not dashed:
        rim = (rect.left - 1, rect.top - 1, rect.right, rect.bottom)
        pen.rectangle(rim, outline=(0, 0, 0, 110), width=width + 2)
        pen.rectangle(rect[:2] + (rect.right - 1, rect.bottom - 1), outline=colour, width=width)
        return
    for bar in _outline_bars(rect, width):
        for dash in _dashes(bar, 4 * width):
            pen.rectangle(_inclusive(dash, 1), fill=(0, 0, 0, 110))
            pen.rectangle(_inclusive(dash), fill=colour)


def _make_canvas(image: Image.Image, min_long_side: int) -> tuple[Image.Image, Rect]:
    """Returns an RGB copy, enlarged and with margins if need be, and the picture's place."""
    scale = max(1, math.ceil(min_long_side / max(image.size)))
    width, height = image.width * scale, image.height * scale
    canvas_width, canvas_height = max(width, _MIN_CANVAS[0]), max(height, _MIN_CANVAS[1])
    if canvas_width * canvas_height >= MAX_PIXELS:
        raise ImageError(
            f"A picture of {image.width}x{image.height} pixels is too large or too narrow to "
            "draw on: make it smaller."
        )
    picture = image.convert("RGB")
    if scale > 1:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (canvas_width - width) // 2, (canvas_height - height) // 2
    canvas = Image.new("RGB", (canvas_width, canvas_height), _BACKDROP)
    canvas.paste(picture, (left, top))
    return canvas, Rect(left, top, left + width, top + height)


def _label(span: Span, number: int) -> str:
    """Returns the phrase, with the score of its n-th box if known; nothing for a lone box."""
    if span.start >= span.end:
        return ""
    score = f" {span.scores[number]:.0%}" if number < len(span.scores) else ""
    return text_tools.clean(span.text) + score


def _draw_labels(
    pen: ImageDraw.ImageDraw,
    items: Sequence[tuple[Rect, Colour, str]],
    size: tuple[int, int],
    font_size: int,
) -> None:
    font = text_tools.load_font(font_size)
    pad = max(4, font_size // 3)
    items = [item for item in items if item[2]]
    texts = [
        text_tools.shorten(text, font, min(size[0], max(rect.width, size[0] // 2)) - 2 * pad)
        for rect, _, text in items
    ]
    height = text_tools.line_height(font) + 2
    sizes = [(math.ceil(font.getlength(text)) + 2 * pad, height) for text in texts]
    places = place_labels([rect for rect, _, _ in items], sizes, *size)
    for (rect, colour, _), place in zip(items, places, strict=True):
        if place:
            _draw_leader(pen, place, rect, colour)
    for (_, colour, _), place, text in zip(items, places, texts, strict=True):
        if place:
            pen.rectangle(_inclusive(place), fill=colour)
            pen.text((place.left + pad, place.top + 1), text, fill=ink_on(colour), font=font)


def _draw_leader(pen: ImageDraw.ImageDraw, label: Rect, box: Rect, colour: Colour) -> None:
    """Joins a label that found no room at its box to the box's nearest point."""
    if label.overlaps(Rect(box.left - 1, box.top - 1, box.right + 1, box.bottom + 1)):
        return
    start = ((label.left + label.right) // 2, (label.top + label.bottom) // 2)
    end = (
        min(max(start[0], box.left), box.right - 1),
        min(max(start[1], box.top), box.bottom - 1),
    )
    pen.line((start, end), fill=(0, 0, 0, 110), width=4)
    pen.line((start, end), fill=colour, width=2)


def _add_caption(canvas: Image.Image, grounded: GroundedText, font_size: int) -> Image.Image:
    """Returns the canvas with the text on white below it, phrases marked in their colours."""
    font = text_tools.load_font(round(1.1 * font_size))
    pad = font_size
    lines = text_tools.wrap(caption_runs(grounded), font, canvas.width - 2 * pad)
    step = round(1.3 * text_tools.line_height(font))
    strip = step * len(lines) + pad
    result = Image.new("RGB", (canvas.width, canvas.height + strip), _PAPER)
    result.paste(canvas)
    pen = ImageDraw.Draw(result)
    for number, line in enumerate(lines):
        left, top = float(pad), canvas.height + pad // 2 + number * step
        for text, owner in line:
            right = left + font.getlength(text)
            if owner is not None:
                colour = span_colour(owner)
                bottom = top + text_tools.line_height(font)
                pen.rectangle((left - 2, top, right + 1, bottom), fill=_tint(colour))
                pen.rectangle((left - 2, bottom - 1, right + 1, bottom + 1), fill=colour)
            pen.text((left, top), text, fill=_INK, font=font)
            left = right
    return result


def caption_runs(grounded: GroundedText) -> list[tuple[str, int | None]]:
    """Returns the text cut at phrases, each piece with the number of its phrase.

    Spans may be out of order, nested or outside the text: a letter belongs to the last one.
    """
    owners: list[int | None] = [None] * len(grounded.text)
    for number, span in enumerate(grounded.spans):
        for place in range(max(span.start, 0), min(span.end, len(owners))):
            owners[place] = number
    runs: list[tuple[str, int | None]] = []
    for letter, owner in zip(grounded.text, owners, strict=True):
        if runs and runs[-1][1] == owner:
            runs[-1] = (runs[-1][0] + letter, owner)
        else:
            runs.append((letter, owner))
    return runs


def _outline_bars(rect: Rect, width: int) -> list[Rect]:
    left, top, right, bottom = rect
    return [
        Rect(left, top, right, min(top + width, bottom)),
        Rect(left, max(bottom - width, top), right, bottom),
        Rect(left, top, min(left + width, right), bottom),
        Rect(max(right - width, left), top, right, bottom),
    ]


def _dashes(bar: Rect, length: int) -> list[Rect]:
    """Returns a bar in dashes of about `length` pixels, one at either end and equal gaps."""
    along = max(bar.width, bar.height)
    count = max(1, round((along / length + 0.7) / 1.7))
    step = (along - length) / (count - 1) if count > 1 else 0
    starts = [round(n * step) for n in range(count)]
    pieces = [(start, min(start + length, along)) for start in starts]
    if bar.width >= bar.height:
        return [Rect(bar.left + a, bar.top, bar.left + b, bar.bottom) for a, b in pieces]
    return [Rect(bar.left, bar.top + a, bar.right, bar.top + b) for a, b in pieces]


def _inclusive(rect: Rect, margin: int = 0) -> tuple[int, int, int, int]:
    """Returns corners as Pillow's drawing wants them: the last ones belong to the rectangle."""
    return (
        rect.left - margin, rect.top - margin, rect.right - 1 + margin, rect.bottom - 1 + margin,
    )  # fmt: skip


def _tint(colour: Colour) -> Colour:
    return tuple(round(255 - (255 - value) * 0.28) for value in colour)


def ink_on(colour: Colour) -> Colour:
    """Returns dark or white, whichever is read better on a colour (relative luminance)."""
    red, green, blue = ((value / 255) ** 2.2 for value in colour)
    return _INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.26 else _PAPER
