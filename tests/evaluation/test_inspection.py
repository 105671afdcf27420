"""Rows as they are shown: tokens, weights, pictures and boxes are those of the batch."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from kosmos2_jax.data.examples import caption_example, encode_example, question_example
from kosmos2_jax.data.packing import SEQUENCES, RowLimits, make_row
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.evaluation.inspection import (
    LOCATION,
    TAG,
    WORD,
    Phrase,
    Slots,
    Token,
    inspect_row,
)
from kosmos2_jax.evaluation.inspection_page import InspectionPage, SourceCounts, page_html
from kosmos2_jax.evaluation.inspection_statistics import BatchStatistics, Bin, histogram
from kosmos2_jax.grounding import Box, GroundedText, Kosmos2Vocabulary, Span
from kosmos2_jax.vision.drawing import span_colour

LATENTS, GRID, SIZE, LENGTH = 4, 8, 64, 80
CAPTION = "the red star and a blue ring"
STAR, RING = Box(0.25, 0.25, 0.75, 0.75), Box(0.5, 0.0, 1.0, 0.5)
TASKS = ["grounded", "visual <b>questions</b>"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Kosmos2Vocabulary:
    model_file = tmp_path_factory.mktemp("text") / "small.model"
    sentences = [CAPTION, "Question: what is <i>it</i> & why? Answer: a <b>star</b>"]
    train_sentencepiece(sentences, model_file, 80)
    return Kosmos2Vocabulary(model_file, GRID)


@pytest.fixture(scope="module")
def batch(vocabulary) -> dict[str, np.ndarray]:
    """One row: a grounded caption, then a question about two pictures."""
    spans = (Span("the red star", 0, 12, (STAR,)), Span("a blue ring", 17, 28, (RING, STAR)))
    pixels = [np.full((SIZE, SIZE, 3), grey, np.uint8) for grey in (40, 80, 120)]
    examples = [
        caption_example(pixels[0], GroundedText(CAPTION, spans)),
        question_example(pixels[1:], [("what is <i>it</i> & why?", "a <b>star</b>")]),
    ]
    encoded = [encode_example(e, vocabulary, LATENTS, word_weight=0.25) for e in examples]
    row = make_row(encoded, RowLimits(LENGTH, 4))
    images = np.zeros((1, 4, SIZE, SIZE, 3), np.uint8)
    images[0, :3] = row["images"]
    return {name: row[name][None] for name in SEQUENCES} | {"images": images}


@pytest.fixture(scope="module")
def row(batch, vocabulary):
    return inspect_row(batch, 0, TASKS, vocabulary, LATENTS)


def a_page(row, batch, vocabulary, **changes) -> str:
    statistics = BatchStatistics(vocabulary, LATENTS)
    statistics.add(batch, [TASKS])
    page = InspectionPage(
        "mixture", {"row": "80"}, [row], statistics, dict.fromkeys(TASKS, 1.0), [], GRID
    )
    return page_html(dataclasses.replace(page, **changes))


def test_tokens_are_those_of_the_batch(row, batch, vocabulary):
    for example, segment in zip(row.examples, (1, 2), strict=True):
        places = np.flatnonzero(batch["segment_ids"][0] == segment)
        assert (example.start, example.size, example.first_position) == (
            places[0],
            len(places),
            0,
        )
        slots = np.flatnonzero(batch["image_slots"][0, places] >= 0)
        shown = {token.position: token for token in example.tokens()}
        assert sorted([*shown, *slots]) == list(range(len(places) + 1))
        for position, token in shown.items():
            if position:
                place = places[position - 1]
                assert token.token_id == batch["targets"][0, place]
                assert token.weight == batch["loss_weights"][0, place]
            assert token.text == vocabulary.tokens[token.token_id]
        assert shown[0] == Token("<s>", vocabulary.bos_id, TAG, 0, 0.0)
    assert row.filled == np.count_nonzero(batch["segment_ids"])


def test_what_is_learnt_and_how_much(row):
    caption, question = row.examples
    weights = {kind: {t.weight for t in caption.tokens() if t.kind == kind} for kind in (WORD, TAG)}
    assert weights == {WORD: {0.25}, TAG: {0.0, 0.25}}
    assert {t.weight for t in caption.tokens() if t.kind == LOCATION} == {1.0}
    learnt = "".join(token.text for token in question.tokens() if token.weight)
    assert learnt == "▁a▁<b>star</b></s>"
    assert caption.notes == question.notes == ()


def test_pictures_are_one_part_each_and_have_their_boxes(row, batch):
    caption, question = row.examples
    assert [p for p in caption.parts if isinstance(p, Slots)] == [Slots(0, LATENTS, 2, 0.0)]
    numbers = [p.picture for p in question.parts if isinstance(p, Slots)]
    assert numbers == [1, 2] == [picture.number for picture in question.pictures]
    for picture in (*caption.pictures, *question.pictures):
        np.testing.assert_array_equal(picture.pixels, batch["images"][0, picture.number])
    phrases = [p for p in caption.parts if isinstance(p, Phrase)]
    assert [(p.picture, p.span) for p in phrases] == [(0, 0), (0, 1)]
    spans = caption.pictures[0].grounded.spans
    assert [span.text for span in spans] == ["the red star", "a blue ring"]
    # Boxes come back as what their cells stand for.
    for found, true in zip((b for s in spans for b in s.boxes), (STAR, RING, STAR), strict=True):
        assert np.abs(np.subtract(found, true)).max() <= 1 / GRID
    assert not question.pictures[0].grounded.spans


def test_boxes_are_drawn_at_their_places(row, batch, vocabulary):
    page = a_page(row, batch, vocabulary)
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        for data in re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    ]
    assert len(pictures) == 3
    drawn = np.asarray(pictures[0], np.int32)

    def column(x: float, y: float) -> list[int]:
        """The colour at a place given as fractions."""
        return drawn[round(y * drawn.shape[0]), round(x * drawn.shape[1])].tolist()

    star = row.examples[0].pictures[0].grounded.spans[0].boxes[0]
    edge = column(star.x1 + 0.004, (star.y1 + star.y2) / 2)
    # The second phrase points at the same box and may lie on top.
    colours = [span_colour(0), span_colour(1)]
    assert min(np.abs(np.subtract(edge, colour)).max() for colour in colours) < 60
    assert np.abs(np.subtract(column(0.1, 0.6), 40)).max() < 8
    assert np.abs(np.asarray(pictures[1], np.int32) - 80).max() < 8


class _Text(html.parser.HTMLParser):
    """What a browser shows, and the names of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.shown, self.elements, self.addresses = "", set(), []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.shown += data


def test_the_page_escapes_all_that_comes_from_data(row, batch, vocabulary):
    evil = '<script>alert("1")</script>'
    example = dataclasses.replace(row.examples[0], task=evil, notes=(evil,))
    statistics = BatchStatistics(vocabulary, LATENTS)
    statistics.add(batch, [[evil, evil]])
    page = a_page(
        dataclasses.replace(row, examples=(example,)),
        batch,
        vocabulary,
        title=evil,
        settings={evil: evil},
        statistics=statistics,
        rates={evil: 1.0},
        sources=[SourceCounts(evil, 1, 2, {evil: 2})],
    )
    text = _Text()
    text.feed(page)
    assert "script" not in text.elements
    assert text.shown.count(evil) >= 8
    assert "<i>it" not in page and "<b>star" not in a_page(row, batch, vocabulary)


def test_the_page_holds_everything_itself(row, batch, vocabulary):
    text = _Text()
    text.feed(a_page(row, batch, vocabulary))
    assert not text.elements & {"script", "link", "iframe", "object"}
    assert all(address.startswith(("#", "data:image/")) for address in text.addresses)
    assert "url(" not in text.shown and "@import" not in text.shown
    for said in (
        "picture 1 4 slots", "grounded", f"{row.filled} of {LENGTH} places filled", "weight 0.25",
    ):  # fmt: skip
        assert said in text.shown


def test_weights_are_marked_by_their_size(row, batch, vocabulary):
    page = a_page(row, batch, vocabulary)
    location = re.search(
        r'<i class="loc (w\d)" title="([^"]+)">(\d{4})</i>', page.split("<p class")[1]
    )
    assert location[1] == "w4" and "weight 1" in location[2]
    cell = int(location[3])
    assert f"column {cell % GRID + 1}, line {cell // GRID + 1}" in location[2]
    assert '<i class="w1" title="' in page and '<i class="w0" title="' in page


def test_broken_and_malformed_examples_are_noted(batch, vocabulary):
    broken = {name: values.copy() for name, values in batch.items()}
    broken["loss_weights"][broken["segment_ids"] == 2] = 0.0
    targets = broken["targets"][0]
    targets[targets == vocabulary.end_object_id] = vocabulary.unk_id
    first, second = inspect_row(broken, 0, TASKS, vocabulary, LATENTS).examples
    assert any("without a closing </object>" in note for note in first.notes)
    assert not any(isinstance(part, Phrase) for part in first.parts)
    assert second.notes == ("Nothing of this example is learnt, as where a picture is broken.",)


def test_statistics(batch, vocabulary):
    statistics = BatchStatistics(vocabulary, LATENTS)
    statistics.add(batch, [TASKS])
    statistics.add(batch, [TASKS])
    segments, weights = batch["segment_ids"][0], batch["loss_weights"][0]
    sizes = [int((segments == k).sum()) for k in (1, 2)]
    assert statistics.lengths == 2 * sizes
    assert statistics.boxes == [3, 0, 3, 0]
    assert statistics.pictures == [3, 3]
    assert statistics.filled == [sum(sizes)] * 2 and statistics.row_length == LENGTH
    for k, name in enumerate(TASKS, start=1):
        task = statistics.tasks[name]
        assert (task.examples, task.tokens) == (2, 2 * sizes[k - 1])
        assert task.learnt == 2 * np.count_nonzero(weights[segments == k])
        assert (task.boxes, task.pictures) == ((6, 2), (0, 4))[k - 1]


def test_histograms_have_round_bins():
    assert histogram([3, 3, 5]) == [Bin(3, 3, 2), Bin(4, 4, 0), Bin(5, 5, 1)]
    bins = histogram([17, 160, 161, 999])
    assert [bar.low for bar in bins] == list(range(0, 1000, 100))
    assert sum(bar.count for bar in bins) == 4 and bins[1] == Bin(100, 199, 2)
    assert histogram([85, 100])[-1] == Bin(100, 100, 1)
    assert histogram([0]) == [Bin(0, 0, 1)]


def test_a_vocabulary_without_boxes(vocabulary):
    plain = Kosmos2Vocabulary(vocabulary.model_file, 0)
    example = question_example([np.zeros((SIZE, SIZE, 3), np.uint8)], [("what?", "a star")])
    made = make_row([encode_example(example, plain, LATENTS)], RowLimits(LENGTH, 1))
    batch = {name: made[name][None] for name in SEQUENCES}
    batch["images"] = np.stack(made["images"])[None]
    row = inspect_row(batch, 0, ["qa"], plain, LATENTS)
    assert "".join(t.text for t in row.examples[0].tokens() if t.weight) == "▁a▁star</s>"
    statistics = BatchStatistics(plain, LATENTS)
    statistics.add(batch, [["qa"]])
    page = page_html(InspectionPage("m", {}, [row], statistics, {"qa": 1.0}, [], 0))
    assert "location token" not in page
