"""A sheet of pictures with predicted and true boxes, to see at a glance what a model does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import IO

from PIL import Image, ImageDraw, ImageFont

from kosmos2_jax.evaluation.box_metrics import MIN_IOU
from kosmos2_jax.grounding.boxes import Box, iou
from kosmos2_jax.vision import text as text_tools
from kosmos2_jax.vision.drawing import draw_box, is_drawable, pixel_box
from kosmos2_jax.vision.labels import Rect

_TILE = 300  # width of a picture on the sheet, and its greatest height
_GAP = 22
_FONT_SIZE = 15
_TEXT_LINES = 3

_PREDICTED = (230, 0, 110)
_TRUE = (0, 230, 118)
_RIGHT = (22, 130, 60)
_WRONG = (200, 30, 45)
_INK = (24, 24, 27)
_GREY = (113, 113, 122)
_PAPER = (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class SheetItem:
    """One picture of a sheet.

    Attributes:
      image: of any size.
      caption: what was asked and answered, say; cut after three lines.
      predicted: boxes of the model, normalised; drawn solid.
      true: true boxes, normalised; drawn dashed.
      correct: whether the answer is right. By default, for items with true boxes: whether the
        first predicted box hits any true one; without boxes there is no mark.
    """

    image: Image.Image
    caption: str
    predicted: Sequence[Box] = ()
    true: Sequence[Box] = ()
    correct: bool | None = None


def picture_sheet(
    items: Sequence[SheetItem], columns: int, file: str | os.PathLike[str] | IO[bytes]
) -> Image.Image:
    """Writes a PNG with all pictures in rows and under each its verdict, IoU and caption.

    Args:
      items: at least one.
      columns: pictures in a row.
      file: gets the PNG; its path, or open for writing.

    Returns:
      The sheet, as written.

    Raises:
      ValueError: there are no items or no columns.
    """
    if not items or columns < 1:
        raise ValueError(f"A sheet needs items and columns, not {len(items)} and {columns}.")
    columns = min(columns, len(items))
    tiles = [_tile(item) for item in items]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    legend = 2 * _FONT_SIZE + _GAP if any(item.predicted or item.true for item in items) else _GAP
    size = (columns * (_TILE + _GAP) + _GAP, legend + sum(heights) + _GAP * len(rows))
    sheet = Image.new("RGB", size, _PAPER)
    if legend > _GAP:
        _draw_legend(ImageDraw.Draw(sheet, "RGBA"))
    top = legend
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (_TILE + _GAP), top))
        top += height + _GAP
    sheet.save(file, "PNG")
    return sheet


def first_box_iou(predicted: Sequence[Box], true: Sequence[Box]) -> float:
    """Returns how well the first predicted box meets the true one it meets best, 0..1."""
    return max((iou(box, predicted[0]) for box in true), default=0.0) if predicted else 0.0


def drawn_picture(item: SheetItem) -> Image.Image:
    """Returns the picture at the size it has on a sheet, with predicted and true boxes."""
    picture = _scaled(item.image)
    pen = ImageDraw.Draw(picture, "RGBA")
    area = Rect(0, 0, picture.width, picture.height)
    # The dashed box goes on top: a perfect prediction shows both.
    for boxes, colour, dashed in ((item.predicted, _PREDICTED, False), (item.true, _TRUE, True)):
        for box in filter(is_drawable, boxes):
            draw_box(pen, pixel_box(box, area), colour, 3, dashed)
    return picture


def _tile(item: SheetItem) -> Image.Image:
    """Returns picture, verdict and caption, `_TILE` pixels wide."""
    picture = drawn_picture(item)
    font = text_tools.load_font(_FONT_SIZE)
    step = text_tools.line_height(font) + 3
    verdict = _verdict(item)
    lines = _caption_lines(item.caption, font)
    height = picture.height + 6 + step * (len(lines) + bool(verdict))
    tile = Image.new("RGB", (_TILE, height), _PAPER)
    tile.paste(picture, ((_TILE - picture.width) // 2, 0))
    pen = ImageDraw.Draw(tile, "RGBA")
    top = picture.height + 6
    if verdict:
        pen.text((0, top), verdict[0], fill=verdict[1], font=font)
        top += step
    for line in lines:
        pen.text((0, top), line, fill=_INK, font=font)
        top += step
    return tile


def _scaled(image: Image.Image) -> Image.Image:
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _verdict(item: SheetItem) -> tuple[str, tuple[int, int, int]] | None:
    overlap = first_box_iou(item.predicted, item.true)
    correct = item.correct
    if correct is None and item.true:
        correct = overlap >= MIN_IOU
    if correct is None:
        return None
    mark, colour = ("✓ right", _RIGHT) if correct else ("✗ wrong", _WRONG)
    if item.true:
        mark += f", IoU {overlap:.2f}" if item.predicted else ", no box"
    return mark, colour


def _caption_lines(caption: str, font: ImageFont.FreeTypeFont) -> list[str]:
    wrapped = text_tools.wrap([(text_tools.clean(caption), None)], font, _TILE)
    lines = ["".join(text for text, _ in line) for line in wrapped]
    if len(lines) <= _TEXT_LINES:
        return lines
    last = text_tools.shorten(" ".join(lines[_TEXT_LINES - 1 :]), font, _TILE)
    return [*lines[: _TEXT_LINES - 1], last]


def _draw_legend(pen: ImageDraw.ImageDraw) -> None:
    font = text_tools.load_font(_FONT_SIZE)
    left, top = _GAP, _GAP // 2
    for text, colour, dashed in (("predicted", _PREDICTED, False), ("true", _TRUE, True)):
        draw_box(pen, Rect(left, top + 1, left + 55, top + 22), colour, 3, dashed)
        pen.text((left + 63, top + 2), text, fill=_GREY, font=font)
        left += 85 + round(font.getlength(text))
