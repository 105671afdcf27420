"""Boxes and labels on pictures: where labels lie, that accents show, odd boxes and pictures."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmos2_jax.errors import ImageError
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.vision import drawing
from kosmos2_jax.vision.drawing import draw_grounded, pixel_box, span_colour
from kosmos2_jax.vision.labels import Rect, place_labels
from kosmos2_jax.vision.text import clean, load_font, shorten, wrap

NAN = float("nan")


def grounded(*phrases: tuple[str, Box]) -> GroundedText:
    text, spans = "", []
    for phrase, box in phrases:
        text += ", " if text else ""
        spans.append(Span(phrase, len(text), len(text) + len(phrase), (box,)))
        text += phrase
    return GroundedText(text, tuple(spans))


def assert_disjoint_and_inside(places, width, height):
    placed = [place for place in places if place]
    for number, place in enumerate(placed):
        assert 0 <= place.left < place.right <= width
        assert 0 <= place.top < place.bottom <= height
        assert not any(place.overlaps(other) for other in placed[:number])


@st.composite
def scenes(draw):
    width, height = draw(st.integers(20, 400)), draw(st.integers(20, 400))
    boxes, sizes = [], []
    for _ in range(draw(st.integers(0, 15))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
        boxes.append(Rect(left, top, right, bottom))
        sizes.append((draw(st.integers(1, 200)), draw(st.integers(5, 40))))
    return width, height, boxes, sizes


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_labels_are_disjoint_and_inside(scene):
    width, height, boxes, sizes = scene
    places = place_labels(boxes, sizes, width, height)
    assert_disjoint_and_inside(places, width, height)
    for place, size in zip(places, sizes, strict=True):
        assert place is None or (place.width, place.height) == size


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_a_label_is_left_out_only_if_there_is_no_room(scene):
    width, height, boxes, sizes = scene
    places = place_labels(boxes, sizes, width, height)
    covered = np.zeros((height, width), np.int64)
    for place in filter(None, places):
        covered[place.top : place.bottom, place.left : place.right] = 1
    sums = np.pad(covered.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    for place, (w, h) in zip(places, sizes, strict=True):
        if place is None and w <= width and h <= height:
            inside = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
            assert inside.min() > 0


def test_labels_are_placed_near_their_boxes():
    boxes = [Rect(50, 50, 90, 90), Rect(50, 50, 90, 90), Rect(0, 0, 30, 30), Rect(95, 40, 100, 60)]
    places = place_labels(boxes, [(30, 10)] * 4, 100, 100)
    assert places[0] == Rect(50, 40, 80, 50)  # on the upper edge
    assert places[1] == Rect(50, 50, 80, 60)  # the same box again: under the upper edge
    assert places[2] == Rect(0, 0, 30, 10)  # no room above: pushed inside
    assert places[3] == Rect(70, 30, 100, 40)  # pushed in from the right
    assert place_labels([boxes[0]], [(101, 10)], 100, 100) == [None]


def placed_labels(monkeypatch, image, text):
    """Draws and returns the places of the labels and the size of what they had to lie in."""
    calls = []

    def spy(boxes, sizes, width, height):
        calls.append((place_labels(boxes, sizes, width, height), width, height))
        return calls[-1][0]

    monkeypatch.setattr(drawing, "place_labels", spy)
    result = draw_grounded(image, text)
    return result, *calls[0]


@pytest.mark.parametrize("name", ["two_dogs.jpg", "man_ball.png"])
def test_many_boxes_on_real_pictures(assets, monkeypatch, name):
    rng = random.Random(7)
    corners = [(rng.random(), rng.random(), rng.random(), rng.random()) for _ in range(30)]
    text = grounded(*[(f"une élégante façade à côté {i}", Box(*c)) for i, c in enumerate(corners)])
    with Image.open(assets / "images" / name) as image:
        result, places, width, height = placed_labels(monkeypatch, image, text)
        assert result.width == width == image.width and result.height > height == image.height
    assert None not in places
    assert_disjoint_and_inside(places, width, height)


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (3, 700), (900, 2)])
def test_small_and_narrow_pictures_are_enlarged(monkeypatch, size):
    text = grounded(("ein schöner Ball", Box(0.1, 0.1, 0.6, 0.5)), ("Öl", Box(0.9, 0.9, 1.0, 1.0)))
    image = Image.new("RGB", size, (90, 120, 150))
    result, places, width, height = placed_labels(monkeypatch, image, text)
    assert max(width, height) >= 512 and min(width, height) >= 128
    assert None not in places
    assert_disjoint_and_inside(places, width, height)
    assert image.size == size and result.mode == "RGB"


def test_boxes_are_where_they_should_be():
    image = Image.new("RGB", (1000, 800), "white")
    text = GroundedText("it", (Span("it", 0, 0, (Box(0.2, 0.25, 0.6, 0.75),)),))
    pixels = np.asarray(draw_grounded(image, text, caption=False)).astype(int)
    assert pixels.shape == (800, 1000, 3)
    inked = np.argwhere(np.abs(pixels - span_colour(0)).sum(-1) == 0)
    assert inked.min(0).tolist() == [200, 200] and inked.max(0).tolist() == [599, 599]
    assert (pixels[250:550, 250:550] == 255).all()


def test_odd_boxes_are_put_right_or_left_out():
    area = Rect(10, 20, 110, 220)
    assert pixel_box(Box(0.5, 0.75, 0.25, 0.5), area) == Rect(35, 120, 60, 170)
    assert pixel_box(Box(-3.0, 0.0, 2.0, 1.0), area) == area
    assert pixel_box(Box(1.0, 1.0, 1.0, 1.0), area) == Rect(109, 219, 110, 220)
    image = Image.new("RGB", (600, 600), "white")
    odd = GroundedText("a b", (Span("a", 0, 1, (Box(NAN, 0.0, 1.0, 1.0), Box(0, 0, 1e9, NAN))),))
    assert (np.asarray(draw_grounded(image, odd, caption=False)) == 255).all()
    for box in (Box(0.9, 0.9, 0.1, 0.1), Box(-1.0, -1.0, 5.0, 5.0), Box(7.0, 7.0, 8.0, 8.0)):
        result = draw_grounded(image, grounded(("x", box)), caption=False)
        assert (np.asarray(result) != 255).any()


def test_spans_outside_the_text_and_nested_ones_are_drawn():
    box = (Box(0.1, 0.1, 0.5, 0.5),)
    spans = (Span("a", -1, -1, box), Span("b", 2, 99, box), Span("c", 0, 3, box))
    draw_grounded(Image.new("RGB", (600, 400)), GroundedText("some words", spans))


def test_no_boxes_and_no_text_leave_the_picture_alone():
    image = Image.effect_noise((600, 520), 60).convert("RGB")
    result = draw_grounded(image, GroundedText("", ()))
    np.testing.assert_array_equal(np.asarray(result), np.asarray(image))
    assert result is not image


def test_thread_of_a_picture_is_one_clear_error():
    with pytest.raises(ImageError, match="too large or too narrow to draw on"):
        draw_grounded(Image.new("1", (1, 500_000)), GroundedText("a"))


def test_accents_are_letters_of_the_font():
    font = load_font(20)
    missing = bytes(font.getmask("\ufdd0"))
    shapes = [bytes(font.getmask(letter)) for letter in "éèêëöôçñåøüßœÉÖÇčłşğŵȘ"]
    assert missing not in shapes
    assert len(set(shapes)) == len(shapes)
    assert clean("cafe\u0301\n\tcre\u0300me\x00 ") == "café crème"  # composed; one line


def test_colours_tell_phrases_apart():
    assert len({span_colour(number) for number in range(30)}) == 30


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab é\n.", max_size=40), st.integers(0, 1)), max_size=6),
    st.integers(12, 200),
)
def test_wrapping_keeps_every_letter_and_the_width(runs, width):
    font = load_font(15)
    lines = wrap(runs, font, width)
    for line in lines:
        text = "".join(piece for piece, _ in line)
        assert font.getlength(text.strip()) <= width + 1
    for key in (0, 1):
        wrapped = "".join(piece for line in lines for piece, owner in line if owner == key)
        given_text = "".join(piece for piece, owner in runs if owner == key)
        assert "".join(wrapped.split()) == "".join(given_text.split())


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.integers(0, 300))
def test_shortening_fits(text, width):
    font, text = load_font(15), clean(text)
    short = shorten(text, font, width)
    assert font.getlength(short) <= width
    assert short == text or short == "" or text.startswith(short.removesuffix("…"))
