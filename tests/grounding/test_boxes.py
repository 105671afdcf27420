"""Boxes to cells and back: golden values, transformers as oracle, and what is refused."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos2_jax.errors import BoxError
from kosmos2_jax.grounding.boxes import Box, box_to_cells, cells_to_box, check_box, iou

GRIDS = (8, 16, 32)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x = sorted(draw(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2, unique=True)))
    y = sorted(draw(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2, unique=True)))
    return Box(x[0], y[0], x[1], y[1])


@pytest.mark.parametrize(
    ("cells", "box"),
    [
        ((44, 863), (0.390625, 0.046875, 0.984375, 0.828125)),
        ((5, 911), (0.171875, 0.015625, 0.484375, 0.890625)),
        ((0, 0), (0, 0, 0.03125, 0.03125)),
        ((0, 1), (0, 0, 0.0625, 0.03125)),
        ((0, 32), (0, 0, 0.03125, 0.0625)),
        ((0, 33), (0.015625, 0.015625, 0.046875, 0.046875)),
        ((0, 1023), (0.015625, 0.015625, 0.984375, 0.984375)),
        ((863, 44), (0.984375, 0.828125, 0.390625, 0.046875)),  # reversed: not checked
    ],
)
def test_published_boxes(cells: tuple[int, int], box: tuple[float, ...]) -> None:
    assert cells_to_box(*cells, 32) == box


def test_cells_beyond_the_grid_give_boxes_beyond_the_picture() -> None:
    assert cells_to_box(0, 1100, 32).y2 > 1


def test_quantisers_differ_on_edges_of_cells_only() -> None:
    box = (0.5, 0.5, 0.75, 0.75)
    assert box_to_cells(box, 32, "official") == (528, 792)
    assert box_to_cells(box, 32, "hugging_face") == (528, 759)
    box = (0.51, 0.51, 0.76, 0.76)
    assert box_to_cells(box, 32, "official") == box_to_cells(box, 32, "hugging_face")


def test_whole_picture_is_first_to_last_cell() -> None:
    for grid in GRIDS:
        for quantiser in ("official", "hugging_face"):
            assert box_to_cells((0, 0, 1, 1), grid, quantiser) == (0, grid * grid - 1)


def test_tiny_box_at_the_corner_has_a_cell() -> None:
    for quantiser in ("official", "hugging_face"):
        assert box_to_cells((0, 0, 1e-30, 1e-30), 32, quantiser) == (0, 0)


def test_same_as_transformers() -> None:
    processing = pytest.importorskip("transformers.models.kosmos2.processing_kosmos2")
    rng = random.Random(0)
    for number in range(6000):
        grid = rng.choice((4, 7, 8, 16, 32))
        snap = (lambda v: round(v * 224) / 224) if number % 2 else float
        x1, x2 = sorted(snap(rng.random()) for _ in range(2))
        y1, y2 = sorted(snap(rng.random()) for _ in range(2))
        if x1 < x2 and y1 < y2:
            expected = processing.coordinate_to_patch_index((x1, y1, x2, y2), grid)
            assert box_to_cells((x1, y1, x2, y2), grid, "hugging_face") == expected
        pair = rng.randrange(2 * grid * grid), rng.randrange(2 * grid * grid)
        assert cells_to_box(*pair, grid) == processing.patch_index_to_coordinate(*pair, grid)


@settings(deadline=None)
@given(boxes(), st.sampled_from(GRIDS), st.sampled_from(("official", "hugging_face")))
def test_round_trip_is_within_a_cell(box: Box, grid: int, quantiser: str) -> None:
    again = cells_to_box(*box_to_cells(box, grid, quantiser), grid)
    assert all(abs(a - b) <= 1 / grid for a, b in zip(box, again, strict=True))
    assert again.x1 < again.x2 and again.y1 < again.y2


@settings(deadline=None)
@given(st.data(), st.sampled_from(GRIDS))
def test_hugging_face_quantiser_inverts_decoding(data: st.DataObject, grid: int) -> None:
    corner = st.integers(0, grid - 1)
    left, right = sorted(data.draw(st.tuples(corner, corner)))
    top, bottom = sorted(data.draw(st.tuples(corner, corner)))
    cells = left + grid * top, right + grid * bottom
    assert box_to_cells(cells_to_box(*cells, grid), grid, "hugging_face") == cells


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((0.6, 0.1, 0.5, 0.9), "reversed: x1 must be less than x2"),
        ((0.1, 0.9, 0.5, 0.1), "reversed: y1 must be less than y2"),
        ((0.1, 0.5, 0.5, 0.5), "no area: y1"),
        ((-0.1, 0.1, 0.5, 0.5), "outside the picture: x1"),
        ((0.1, 0.1, 20, 30), "outside the picture: x2, y2"),
        ((0.1, math.nan, 0.5, 0.5), "not a finite number"),
        ((0.1, 0.1, math.inf, 0.5), "not a finite number"),
        ((0.1, 0.2, 0.3), "must be four numbers"),
        ("abcd", "must be four numbers"),
        (None, "must be four numbers"),
    ],
)
def test_bad_boxes_are_named(box: object, words: str) -> None:
    with pytest.raises(BoxError, match=words) as caught:
        check_box(box)
    assert "\n" not in str(caught.value)
    with pytest.raises(BoxError, match=words):
        box_to_cells(box, 32)


def test_good_box_becomes_floats() -> None:
    assert check_box([0, 0, 1, 1]) == Box(0.0, 0.0, 1.0, 1.0)
    assert all(type(value) is float for value in check_box([0, 0, 1, 1]))


def test_unknown_quantiser_and_no_grid() -> None:
    with pytest.raises(BoxError, match="quantiser 'round'"):
        box_to_cells((0, 0, 1, 1), 32, "round")
    with pytest.raises(BoxError, match="grid_size=0"):
        cells_to_box(0, 0, 0)


def test_iou() -> None:
    a = Box(0, 0, 0.5, 0.5)
    assert iou(a, a) == 1
    assert iou(a, Box(0.5, 0.5, 1, 1)) == 0
    assert iou(a, Box(0.25, 0, 0.75, 0.5)) == pytest.approx(1 / 3)
    assert iou(a, Box(0.5, 0.5, 0, 0)) == 0  # reversed
    assert iou(Box(0.5, 0.5, 0, 0), Box(0.5, 0.5, 0, 0)) == 0
    assert iou(Box(0, 0, 0, 0), Box(0, 0, 0, 0)) == 0  # the reference's "no prediction"


@settings(deadline=None)
@given(st.tuples(*[st.floats(-2, 2)] * 4), st.tuples(*[st.floats(-2, 2)] * 4))
def test_iou_of_anything_is_a_fraction(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    assert 0 <= iou(a, b) <= 1
    assert iou(a, b) == iou(b, a)
