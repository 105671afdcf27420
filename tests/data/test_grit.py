"""Which annotations are chosen, where their boxes go, and which tokens they tag (spec 4.3)."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmos2_jax.data import grit
from kosmos2_jax.data.grit import GritConfig, choose, fit_to_tokens
from kosmos2_jax.errors import ConfigError, MarkupError
from kosmos2_jax.grounding.boxes import Box, box_to_cells
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.grounding.markup import parse, render
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.vision.preprocessing import crop_pixels

# The sample of the official README.
CAPTION = "a wire hanger with a paper cover that reads we heart our customers"
REF_EXPS = [
    [19, 66, 0.019644069503434333, 0.31054004033406574, 0.9622142865754519, 0.9603442351023356]
    + [0.79298526],
    [0, 66, 0.019422357885505368, 0.027634161214033764, 0.9593302408854166, 0.969467560450236]
    + [0.67520964],
]
SQUARE = GritConfig(image_mode="square")
BOX = [0.1, 0.2, 0.5, 0.9]


@functools.cache
def _released(folder: Path) -> Kosmos2Vocabulary:
    return Kosmos2Vocabulary(folder / "sentencepiece.bpe.model")


@pytest.fixture(scope="module")
def released(assets: Path) -> Kosmos2Vocabulary:
    return _released(assets / "tokenizer")


def spans_of(annotations: Any, config: GritConfig = SQUARE, text: str = CAPTION) -> list[Any]:
    chosen = choose(text, annotations, (100, 100), config)
    return [(span.start, span.end, len(span.boxes)) for span in chosen.caption.spans]


def test_the_worked_example_of_the_spec() -> None:
    chosen = choose(CAPTION, REF_EXPS, (1024, 693), GritConfig())
    (span,) = chosen.caption.spans
    assert (span.text, span.start, span.end, span.scores) == (CAPTION, 0, 66, (0.67520964,))
    assert span.boxes[0] == pytest.approx((0, 0.02763, 1, 0.96947), abs=5e-6)
    assert box_to_cells(span.boxes[0], 32) == (0, 1023)
    assert chosen.kept == 1
    assert chosen.reasons == {"filtered: phrase is contained in another one": 1}


def test_phrase_mode_has_no_containment_filter_but_drops_nested_phrases() -> None:
    config = GritConfig(phrase_mode="phrase", image_mode="square")
    assert grit.ANNOTATIONS[config.phrase_mode] == "noun_chunks"
    chunks = [[0, 13, *BOX, 0.9], [19, 32, *BOX, 0.9], [2, 6, *BOX, 0.9]]
    chosen = choose(CAPTION, chunks, (10, 10), config)
    assert [span.text for span in chosen.caption.spans] == ["a wire hanger", "a paper cover"]
    assert chosen.reasons == {"filtered: phrase overlaps another one": 1}


def test_boxes_of_one_phrase_keep_their_order() -> None:
    boxes = [[0.1 * i, 0.1, 0.1 * i + 0.3, 0.4] for i in (3, 0, 5, 1)]
    annotations = [[0, 13, *box, 0.7 + 0.01 * i] for i, box in enumerate(boxes)]
    annotations.insert(2, [19, 32, *BOX, 0.9])
    first, second = choose(CAPTION, annotations, (10, 10), SQUARE).caption.spans
    assert [list(box) for box in first.boxes] == boxes
    assert first.scores == pytest.approx([0.7, 0.71, 0.72, 0.73])
    assert len(second.boxes) == 1


def test_the_threshold_is_inclusive() -> None:
    annotations = [[0, 1, *BOX, 0.65], [2, 6, *BOX, 0.6499]]
    assert spans_of(annotations) == [(0, 1, 1)]
    assert spans_of(annotations, GritConfig(0.5, image_mode="square")) == [(0, 1, 1), (2, 6, 1)]


def test_a_box_that_the_crop_hides_frees_the_phrases_within_its_own() -> None:
    """Only surviving phrases contain others (spec 4.3 step 3)."""
    hidden = [0.0, 0.0, 0.1, 1.0]
    annotations = [[0, 66, *hidden, 0.9], [19, 66, *BOX[:2], 0.9, 0.9, 0.9]]
    chosen = choose(CAPTION, annotations, (200, 100), GritConfig())
    assert [(span.start, span.end) for span in chosen.caption.spans] == [(19, 66)]
    assert chosen.reasons == {"filtered: box is not seen in the crop": 1}


def test_partly_overlapping_phrases_leave_the_first() -> None:
    annotations = [[10, 20, *BOX, 0.9], [0, 12, *BOX, 0.9], [20, 30, *BOX, 0.9]]
    chosen = choose(CAPTION, annotations, (10, 10), SQUARE)
    assert [(span.start, span.end) for span in chosen.caption.spans] == [(0, 12), (20, 30)]
    assert chosen.reasons == {"filtered: phrase overlaps another one": 1}


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda t: t[0] < t[1])),
)
@settings(deadline=None)
def test_containment_is_the_rule_of_the_spec(ranges: list[tuple[int, int]]) -> None:
    """Against all pairs: a phrase goes if it lies in another one that is not the same."""
    annotations = [[start, end, *BOX, 0.9] for start, end in ranges]
    chosen = choose("abcdefghijkl", annotations, (10, 10), SQUARE)
    left = [a for a in ranges if not any(b != a and b[0] <= a[0] and a[1] <= b[1] for b in ranges)]
    contained = chosen.reasons["filtered: phrase is contained in another one"]
    assert contained == len(ranges) - len(left)
    kept = [(span.start, span.end) for span in chosen.caption.spans]
    assert set(kept) <= set(left)
    assert all(a[1] <= b[0] for a, b in zip(kept, kept[1:], strict=False))
    # What is dropped besides overlaps something kept.
    assert all(any(k[0] < a[1] and a[0] < k[1] for k in kept) for a in left)


SIDES = st.integers(1, 2000)
FRACTIONS = st.floats(0, 1, width=32)


def _ordered(a: float, b: float) -> tuple[float, float]:
    return (min(a, b), max(a, b))


@given(SIDES, SIDES, FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS)
@example(1024, 693, 0.02, 0.95, 0.02, 0.96)
@settings(deadline=None, max_examples=300)
def test_the_crop_rule_against_counted_samples(
    width: int, height: int, xa: float, xb: float, ya: float, yb: float
) -> None:
    """Counts points of a fine raster in the box, and those of them that the crop shows."""
    size = 32
    (x1, x2), (y1, y2) = _ordered(xa, xb), _ordered(ya, yb)
    if x2 - x1 < 1e-3 or y2 - y1 < 1e-3 or max(width, height) > 60 * min(width, height):
        return
    short = min(width, height)
    seen, all_points, edges = 1.0, 1.0, []
    for low, high, side in ((x1, x2, width), (y1, y2, height)):
        resized = size if side == short else math.floor(size * side / short)
        points = (np.arange(resized * 500) + 0.5) / 500  # pixels of the resized picture
        inside = (low * resized <= points) & (points < high * resized)
        crop = points[inside] - (resized - size) / 2
        crop = crop[(crop >= 0) & (crop < size)]
        seen, all_points = seen * len(crop), all_points * inside.sum()
        edges.append((crop.min(), crop.max()) if len(crop) else None)
    chosen = choose(
        "a dog", [[0, 5, x1, y1, x2, y2, 1.0]], (width, height), GritConfig(image_size=size)
    )
    share = seen / max(all_points, 1)
    if abs(share - 0.2) < 0.02:
        return  # too close for counting
    assert bool(chosen.caption.spans) == (share > 0.2)
    if chosen.caption.spans:
        box = np.array(chosen.caption.spans[0].boxes[0]) * size
        (left, right), (top, bottom) = edges
        np.testing.assert_allclose(box, [left, top, right, bottom], atol=0.003)


def test_a_box_that_rounding_makes_empty_is_not_seen() -> None:
    annotation = [0, 5, 0.33641135493437, 0, 0.3364113549343701, 1, 0.9]
    chosen = choose("a dog", [annotation], (846, 782), GritConfig(image_size=336))
    assert chosen.reasons == {"filtered: box is not seen in the crop": 1}


@given(st.integers(40, 160), st.integers(40, 160), st.data())
@settings(deadline=None, max_examples=60)
def test_boxes_lie_where_the_cropped_pixels_are(width: int, height: int, data: Any) -> None:
    """A white rectangle is drawn, the picture cropped, and the rectangle found again."""
    x1 = data.draw(st.integers(0, width - 20))
    y1 = data.draw(st.integers(0, height - 20))
    x2 = data.draw(st.integers(x1 + 20, width))
    y2 = data.draw(st.integers(y1 + 20, height))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    white = crop_pixels(Image.fromarray(pixels), 64)[..., 0] > 127
    box = [x1 / width, y1 / height, x2 / width, y2 / height]
    chosen = choose(
        "a dog", [[0, 5, *box, 1.0]], (width, height), GritConfig(image_size=64)
    ).caption.spans
    if not chosen:
        return
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    # The crop begins at a whole pixel but is reckoned from half pixels (spec 4.3).
    np.testing.assert_allclose(np.array(chosen[0].boxes[0]) * 64, found, atol=1.6)


MALFORMED = [
    (None, "annotation is not a list of seven numbers"),
    ("0 1 0 0 1 1 1", "annotation is not a list of seven numbers"),
    ([0, 1, *BOX], "annotation is not a list of seven numbers"),
    ([0, 1, *BOX, "0.9"], "annotation is not a list of seven numbers"),
    ([0, True, *BOX, 0.9], "annotation is not a list of seven numbers"),
    ([0, None, *BOX, 0.9], "annotation is not a list of seven numbers"),
    ([0.5, 3, *BOX, 0.9], "offset is not a whole number"),
    ([0, math.nan, *BOX, 0.9], "offset is not a whole number"),
    ([0, math.inf, *BOX, 0.9], "offset is not a whole number"),
    ([0, 67, *BOX, 0.9], "offset is outside the caption"),
    ([-1, 3, *BOX, 0.9], "offset is outside the caption"),
    ([0, 10**400, *BOX, 0.9], "offset is outside the caption"),
    ([13, 2, *BOX, 0.9], "offsets are swapped"),
    ([2, 2, *BOX, 0.9], "phrase is empty"),
    ([1, 2, *BOX, 0.9], "phrase is empty"),
    ([0, 1, math.nan, 0.2, 0.5, 0.9, 0.9], "coordinate or score is not a finite number"),
    ([0, 1, 0.1, 0.2, math.inf, 0.9, 0.9], "coordinate or score is not a finite number"),
    ([0, 1, 0.1, 0.2, 10**400, 0.9, 0.9], "coordinate or score is not a finite number"),
    ([0, 1, *BOX, math.nan], "coordinate or score is not a finite number"),
    ([0, 1, 0.5, 0.2, 0.1, 0.9, 0.9], "box is reversed or without area"),
    ([0, 1, 0.1, 0.2, 0.5, 0.2, 0.9], "box is reversed or without area"),
    ([0, 1, 1.1, 0.2, 1.5, 0.9, 0.9], "box is outside the picture"),
    ([0, 1, -0.9, 0.2, 0.1, 0.9, 0.9], "box is outside the picture"),
    ([0, 1, 12, 30, 200, 180, 0.9], "box is outside the picture"),  # pixels
    ([0, 1, 0, 0, 200, 180, 0.9], "box is outside the picture"),
    ([0, 1, -1e308, -1e308, 1e308, 1e308, 0.9], "box is outside the picture"),
]


@pytest.mark.parametrize("config", [GritConfig(), SQUARE], ids=lambda config: config.image_mode)
@pytest.mark.parametrize(("raw", "reason"), MALFORMED)
def test_malformed_annotations_are_counted(raw: Any, reason: str, config: GritConfig) -> None:
    chosen = choose(CAPTION, [[19, 32, *BOX, 0.9], raw], (100, 100), config)
    assert [span.text for span in chosen.caption.spans] == ["a paper cover"]
    assert (chosen.kept, chosen.reasons) == (1, {reason: 1})


def test_offsets_may_be_floats_of_whole_value() -> None:
    assert spans_of([[0.0, 13.0, *BOX, 0.9]]) == [(0, 13, 1)]


@pytest.mark.parametrize("config", [GritConfig(), SQUARE], ids=lambda config: config.image_mode)
def test_boxes_that_reach_out_a_little_are_clipped(config: GritConfig) -> None:
    chosen = choose("a dog", [[0, 5, -0.1, 0.5, 0.6, 1.001, 0.9]], (100, 100), config)
    assert chosen.caption.spans[0].boxes == (Box(0.0, 0.5, 0.6, 1.0),)
    assert chosen.reasons == {"clipped: box reaches out of the picture": 1}


def test_how_much_must_be_seen_is_a_setting() -> None:
    annotation = [0, 5, 0.0, 0.0, 0.5, 1.0, 0.9]  # two thirds of it are in the crop
    for share, count in ((0.66, 1), (0.67, 0)):
        config = GritConfig(min_visible=share, image_size=200)
        assert choose("a dog", [annotation], (300, 200), config).kept == count


def test_the_share_seen_is_one_of_the_whole_box() -> None:
    """Of this box 30% are in the picture, and half of that is in the crop."""
    annotation = [0, 5, -0.7, 0.0, 0.3, 1.0, 0.9]
    chosen = choose("a dog", [annotation], (1000, 714), GritConfig(image_size=714))
    assert chosen.reasons == {"filtered: box is not seen in the crop": 1}


@pytest.mark.parametrize("annotations", [None, 3, "a", {}])
def test_no_list_of_annotations(annotations: Any) -> None:
    chosen = choose(CAPTION, annotations, (10, 10), SQUARE)
    assert chosen.reasons == {"annotation is not a list of seven numbers": 1}
    assert chosen.caption == GroundedText(CAPTION)


NUMBERS = st.one_of(
    st.integers(-3, 14), st.floats(), st.floats(-0.2, 1.2), st.floats(0.6, 1), st.integers()
)
ANYTHING = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=3))


@given(
    st.lists(
        st.one_of(st.lists(NUMBERS, min_size=7, max_size=7), st.lists(ANYTHING), ANYTHING),
        max_size=8,
    ),
    st.sampled_from(["crop", "square"]),
    st.sampled_from(["expression", "phrase"]),
    st.tuples(SIDES, SIDES),
)
@settings(deadline=None, max_examples=500)
def test_every_annotation_is_kept_or_counted_once(
    annotations: list[Any], image_mode: str, phrase_mode: str, size: tuple[int, int]
) -> None:
    config = GritConfig(image_mode=image_mode, phrase_mode=phrase_mode)
    chosen = choose("a dog on a bed", annotations, size, config)
    left_out = sum(n for reason, n in chosen.reasons.items() if not reason.startswith("clipped: "))
    assert chosen.kept + left_out == len(annotations)
    assert chosen.kept == sum(len(span.boxes) for span in chosen.caption.spans)
    render(chosen.caption, 32)  # raises unless all phrases and boxes are well-formed


def test_the_token_rules(released: Kosmos2Vocabulary) -> None:
    box = (Box(*BOX),)

    def fitted(text: str, *ranges: tuple[int, int]) -> tuple[list[str], Counter[str]]:
        spans = tuple(Span(text[a:b], a, b, box) for a, b in ranges)
        caption, reasons = fit_to_tokens(GroundedText(text, spans), released)
        markup = released.decode(released.encode_grounded(caption))
        return re.findall("<phrase>(.*?)</phrase>", markup), reasons

    # What comes before is a prefix; it differs in its last token; it differs in more.
    assert fitted("a snowman", (2, 9)) == ([" snowman"], {})
    assert fitted("a snowman", (6, 9)) == ([" snowman"], {})
    before, through = released.encode("homeopa"), released.encode("homeopathic")
    assert before[: len(before) - 1] != through[: len(before) - 1]
    with pytest.raises(MarkupError, match="begins inside a token"):
        fitted("homeopathic", (7, 11))
    # Two phrases on one token, and one without any.
    shared = {"filtered: phrase has no tokens of its own": 1}
    assert fitted("a snowman", (2, 6), (6, 9)) == ([" snowman"], shared)
    assert fitted("a \u200b dog", (2, 3), (4, 7)) == ([" dog"], shared)
    # The end too may differ in its last token, not in more: these ranges would tag "cat".
    assert fitted("a snowman", (2, 6)) == ([" snowman"], {})
    inside = {"phrase ends inside a token": 1}
    for text in ("homeopathic", "homeopathic cat"):
        assert fitted(text, (0, 7)) == ([], inside)
        assert fitted(text, (4, 7)) == ([], inside)


WORDS = st.sampled_from(
    ("a", "dog", "snow-covered", "field", "of", "flowers,", "Ünïcode", "U.S.", "犬", "3.14")
    + ("don't", "(two)", "homeopathic", "x" * 20, "☃", "été", '"red"', "fire."),
)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_parsing_what_is_encoded_gives_phrases_and_boxes(
    released: Kosmos2Vocabulary, data: Any
) -> None:
    """Phrases of whole words, as spaCy's are, come back; their boxes to within a cell."""
    words = data.draw(st.lists(WORDS, min_size=1, max_size=12))
    # Unknown characters come back as <unk>, which no phrase may hold (trap T-19).
    words = [word for word in words if released.unk_id not in released.encode(word)] or ["dog"]
    text = " ".join(words)
    starts = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
    annotations = []
    for _ in range(data.draw(st.integers(0, 4))):
        first = data.draw(st.integers(0, len(words) - 1))
        last = data.draw(st.integers(first, min(first + 3, len(words) - 1)))
        x1, y1 = data.draw(st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)))
        x2, y2 = data.draw(st.tuples(st.floats(x1 + 0.01, 1), st.floats(y1 + 0.01, 1)))
        annotations.append([starts[first], starts[last] + len(words[last]), x1, y1, x2, y2, 0.9])
    chosen = choose(text, annotations, (10, 10), SQUARE)
    caption, reasons = fit_to_tokens(chosen.caption, released)
    assert not reasons and caption == chosen.caption
    ids = released.encode_grounded(caption)
    assert [i for i in ids if i < released.phrase_id] == released.encode(text)
    for said in (parse(released.decode(ids), 32), parse(render(caption, 32), 32)):
        assert said.problems == () or not caption.spans
        assert said.text == text
        assert [(s.start, s.end) for s in said.spans] == [(s.start, s.end) for s in caption.spans]
        for ours, theirs in zip(caption.spans, said.spans, strict=True):
            np.testing.assert_allclose(theirs.boxes, ours.boxes, atol=1 / 32 + 1e-5)


@given(st.text(max_size=30), st.data())
@settings(deadline=None, max_examples=300)
def test_any_caption_with_any_phrases_keeps_its_tokens(
    released: Kosmos2Vocabulary, text: str, data: Any
) -> None:
    places = st.integers(0, len(text))
    ranges = data.draw(st.lists(st.tuples(places, places), max_size=5))
    annotations = [[start, end, *BOX, 0.9] for start, end in ranges]
    chosen = choose(text, annotations, (10, 10), SQUARE)
    try:
        caption, reasons = fit_to_tokens(chosen.caption, released)
    except MarkupError as error:
        assert "begins inside a token" in str(error)
        return
    ids = released.encode_grounded(caption)
    assert [i for i in ids if i < released.phrase_id] == released.encode(text)
    boxes = sum(len(span.boxes) for span in caption.spans)
    assert boxes + reasons.total() == chosen.kept
    assert sum(map(released.is_location, ids)) == 2 * boxes


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"phrase_mode": "word"}, "no phrase mode 'word'"),
        ({"image_mode": "stretch"}, "no image mode 'stretch'"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"grounding_probability": 1.5}, "at most 1, not 1.5"),
    ],
)
def test_settings_that_cannot_be(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GritConfig(**settings_)
