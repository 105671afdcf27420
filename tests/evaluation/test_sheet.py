"""Sheets of pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kosmos2_jax.evaluation import sheet
from kosmos2_jax.evaluation.sheet import SheetItem, first_box_iou, picture_sheet
from kosmos2_jax.grounding.boxes import Box

TRUE = Box(0.2, 0.2, 0.6, 0.6)
GREY = Image.new("RGB", (64, 64), (120, 120, 120))


def colours(image) -> set[tuple[int, int, int]]:
    return {colour for _, colour in image.getcolors(1 << 24)}


def test_sheet_is_written_and_holds_every_kind_of_item(tmp_path):
    items = [
        SheetItem(GREY, "hit", (TRUE,), (TRUE,)),
        SheetItem(GREY, "miss", (Box(0.7, 0.7, 0.9, 0.9),), (TRUE,)),
        SheetItem(GREY, "none", (), (TRUE,)),
        SheetItem(Image.new("L", (10, 300)), "what shape? circle", correct=True),
        SheetItem(GREY, "long " * 100, (Box(float("nan"), 0, 1, 1),), (TRUE, TRUE)),
        SheetItem(Image.new("RGBA", (500, 3)), ""),
    ]
    path = tmp_path / "sheet.png"
    result = picture_sheet(items, 4, path)
    with Image.open(path) as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(result))
    # Four columns, whatever the pictures' sides are.
    assert result.width == 4 * (sheet._TILE + sheet._GAP) + sheet._GAP
    seen = colours(result)
    assert {sheet._PREDICTED, sheet._TRUE, sheet._RIGHT, sheet._WRONG} <= seen


def test_verdicts():
    half = Box(0.2, 0.2, 0.4, 0.6)
    assert sheet._verdict(SheetItem(GREY, "", (half,), (TRUE,)))[0] == "✓ right, IoU 0.50"
    low = Box(0.2, 0.2, 0.3, 0.6)
    assert sheet._verdict(SheetItem(GREY, "", (low, TRUE), (TRUE,)))[0] == "✗ wrong, IoU 0.25"
    assert sheet._verdict(SheetItem(GREY, "", (), (TRUE,)))[0] == "✗ wrong, no box"
    assert sheet._verdict(SheetItem(GREY, "", correct=True))[0] == "✓ right"
    assert sheet._verdict(SheetItem(GREY, "", correct=False))[0] == "✗ wrong"
    assert sheet._verdict(SheetItem(GREY, "")) is None
    assert first_box_iou((TRUE,), (half, TRUE)) == 1.0


def test_true_boxes_are_dashed_and_predicted_ones_solid(tmp_path):
    def share_of_top_edge(item, colour):
        edge = sheet._tile(item).crop((90, 60, 150, 61))
        return (np.asarray(edge) == colour).all(-1).mean()

    box = Box(0.2, 0.2, 0.8, 0.8)
    assert share_of_top_edge(SheetItem(GREY, "", (box,)), sheet._PREDICTED) == 1.0
    assert 0.3 < share_of_top_edge(SheetItem(GREY, "", (), (box,)), sheet._TRUE) < 0.9
    both = SheetItem(GREY, "", (box,), (box,))
    assert share_of_top_edge(both, sheet._PREDICTED) > 0.1
    assert share_of_top_edge(both, sheet._TRUE) > 0.3


def test_captions_are_cut_after_three_lines():
    font = sheet.text_tools.load_font(15)
    lines = sheet._caption_lines("a word after another " * 20, font)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert sheet._caption_lines("", font) == []
    assert all(font.getlength(line) <= sheet._TILE for line in lines)


def test_sheets_need_items_and_columns(tmp_path):
    for items, columns in (([], 3), ([SheetItem(GREY, "")], 0)):
        with pytest.raises(ValueError, match="needs items and columns"):
            picture_sheet(items, columns, tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())
