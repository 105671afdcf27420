"""Markup: rendering, parsing with transformers as oracle, and round trips."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos2_jax.errors import BoxError, MarkupError
from kosmos2_jax.grounding import markup
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.grounding.markup import parse, render
from kosmos2_jax.grounding.tags import has_tags, location_token, require_no_tags

SNOWMAN = (
    "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044>"
    "<patch_index_0863></object> warming himself by<phrase> a fire</phrase><object>"
    "<patch_index_0005><patch_index_0911></object>."
)
FRAGMENTS = (
    *("<phrase>", "</phrase>", "<object>", "</object>", "</delimiter_of_multi_objects/>"),
    *("<patch_index_0044>", "<patch_index_0863>", "<patch_index_7>", "<patch_index_12345>"),
    *("<patch_index_0005><patch_index_0911>", "</phrase><object>", "<phrase> a dog</phrase>"),
    *("<object><patch_index_0001><patch_index_0002></object>", "<grounding>", "</image>"),
    *("<image>", "</s>", "<unk>", "<", ">", " ", "  ", "\n", "\t", " a", "fire", "é", "1 < 2", "."),
)
WORDS = ("a", "red", "dog", "fire", "été", "x>y", "snow-man", "2", "don't", "犬", "\nnew")


@st.composite
def grounded_texts(draw: st.DrawFn, grid: int) -> GroundedText:
    """Captions of words with phrases over some of them; boxes are those of random cells."""
    text, spans = "", []
    for words, count in draw(
        st.lists(
            st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), st.integers(0, 3)),
            max_size=4,
        )
    ):
        phrase = " ".join(words).strip()
        text += draw(st.sampled_from((" ", " ", ", ", "  "))) if text else ""
        if count:
            corners = [
                (*sorted(draw(st.tuples(cell, cell))), *sorted(draw(st.tuples(cell, cell))))
                for cell in [st.integers(0, grid - 1)] * count
            ]
            boxes = tuple(
                Box((a + 0.3) / grid, (c + 0.3) / grid, (b + 0.6) / grid, (d + 0.6) / grid)
                for a, b, c, d in corners
            )
            spans.append(Span(phrase, len(text), len(text) + len(phrase), boxes))
        text += phrase
    return GroundedText(text, tuple(spans))


def test_render_puts_the_space_inside_the_phrase() -> None:
    text = GroundedText("a dog on a bed", (Span("dog", 2, 5, (Box(0.4, 0.05, 0.99, 0.83),)),))
    expected = (
        "a<phrase> dog</phrase><object><patch_index_0044><patch_index_0863></object> on a bed"
    )
    assert render(text, 32) == expected


def test_render_of_several_boxes_at_the_beginning() -> None:
    boxes = (Box(0, 0, 0.5, 0.5), Box(0.5, 0.5, 1, 1))
    assert render(GroundedText("dogs", (Span("dogs", 0, 4, boxes),)), 8) == (
        "<phrase> dogs</phrase><object><patch_index_0000><patch_index_0036>"
        "</delimiter_of_multi_objects/><patch_index_0036><patch_index_0063></object>"
    )


def test_render_without_boxes_and_inside_a_word() -> None:
    text = GroundedText("(dog) cat", (Span("dog", 1, 4), Span("cat", 6, 9)))
    assert render(text, 32) == "(<phrase>dog</phrase>)<phrase> cat</phrase>"


def test_quantiser_is_passed_on() -> None:
    text = GroundedText("a", (Span("a", 0, 1, (Box(0.5, 0.5, 0.75, 0.75),)),))
    assert "<patch_index_0792>" in render(text, 32)
    assert "<patch_index_0759>" in render(text, 32, "hugging_face")


def test_what_cannot_be_rendered() -> None:
    with pytest.raises(MarkupError, match="tag <object>"):
        render(GroundedText("a <object> here"), 32)
    with pytest.raises(MarkupError, match="'<' at character 2"):
        render(GroundedText("1 < 2"), 32)
    spans = (Span("a b", 0, 3), Span("b c", 2, 5))
    with pytest.raises(MarkupError, match="overlap"):
        render(GroundedText("a b c", spans), 32)
    with pytest.raises(BoxError, match="reversed"):
        render(GroundedText("a", (Span("a", 0, 1, (Box(1, 1, 0, 0),)),)), 32)


def test_location_tokens_have_four_digits() -> None:
    assert location_token(7) == "<patch_index_0007>"
    assert location_token(1023) == "<patch_index_1023>"


def test_published_caption() -> None:
    assert parse(SNOWMAN, 32).text == "An image of a snowman warming himself by a fire."
    assert parse(SNOWMAN, 32).entities() == [
        ("a snowman", (12, 21), [(0.390625, 0.046875, 0.984375, 0.828125)]),
        ("a fire", (41, 47), [(0.171875, 0.015625, 0.484375, 0.890625)]),
    ]
    assert parse(SNOWMAN, 32).problems == ()


def test_only_what_follows_the_last_image_counts() -> None:
    text = parse(f"<image>the,</image>first<image>and</image>{SNOWMAN}", 32)
    assert text == parse(SNOWMAN, 32)


def test_several_boxes_for_one_phrase() -> None:
    (span,) = parse(
        "<phrase> two dogs</phrase><object><patch_index_0079><patch_index_1016>"
        "</delimiter_of_multi_objects/><patch_index_0135><patch_index_1008></object>",
        32,
    ).spans
    assert (span.text, len(span.boxes)) == ("two dogs", 2)


@pytest.mark.parametrize(
    ("text", "clean", "entities"),
    [  # the edge cases of spec section 3.5
        ("1 < 2 and 3 > 2", "1  2", []),
        ("<phrase> a</phrase><object><patch_index_0001><patch_index_0002>", "a", []),
        (
            "<phrase></phrase><object><patch_index_0000><patch_index_0000></object>",
            "",
            [("<patch_index_0><patch_index_0>", (0, 0), [(0, 0, 0.03125, 0.03125)])],
        ),
        (
            "a<phrase> b</phrase> <object><patch_index_0000><patch_index_0000></object>",
            "a b",
            [("<patch_index_0><patch_index_0>", (4, 4), [(0, 0, 0.03125, 0.03125)])],
        ),
    ],
)
def test_edge_cases(text: str, clean: str, entities: list) -> None:
    result = parse(text, 32)
    assert (result.text, result.entities()) == (clean, entities)
    assert result.problems


def _random_markup(rng: random.Random) -> str:
    """Fragments at random, or a caption of which one part has gone wrong."""
    if rng.random() < 0.5:
        return "".join(rng.choices(FRAGMENTS, k=rng.randrange(1, 16)))
    parts = ["<grounding>", " An image of"]
    for _ in range(rng.randrange(1, 4)):
        parts += ["<phrase>", " a dog", "</phrase>", "<object>"]
        for number in range(rng.randrange(1, 3)):
            parts += ["</delimiter_of_multi_objects/>"] * bool(number)
            parts += ["<patch_index_0000>", f"<patch_index_{rng.randrange(33, 64):04d}>"]
        parts += ["</object>", rng.choice((".", " and"))]
    place = rng.randrange(len(parts))
    parts[place : place + rng.randrange(2)] = rng.choices(FRAGMENTS, k=rng.randrange(2))
    return "".join(parts)


def test_malformed_and_well_formed_text_as_transformers_reads_it() -> None:
    processing = pytest.importorskip("transformers.models.kosmos2.processing_kosmos2")
    rng = random.Random(1)
    grounded = faultless = 0
    for _ in range(20000):
        text = _random_markup(rng)
        caption = text.split("</image>")[-1]
        grid = rng.choice((8, 16, 32))
        result = parse(text, grid)
        assert (
            result.text,
            result.entities(),
        ) == processing.clean_text_and_extract_entities_with_bboxes(caption, grid), text
        grounded += bool(result.spans)
        # Whatever the parser could not use is explained, and what it says is fine is fine.
        if not result.problems:
            faultless += 1
            assert caption.count("<object>") == len(result.spans) > 0, text
            assert all(result.text[s.start : s.end] == s.text for s in result.spans), text
    assert grounded > 8000
    assert faultless > 1000


def test_published_caption_through_the_real_processor(hugging_face_processor) -> None:  # noqa: ANN001
    expected = hugging_face_processor.post_process_generation(SNOWMAN)
    assert (parse(SNOWMAN, 32).text, parse(SNOWMAN, 32).entities()) == expected


@pytest.mark.parametrize("grid", [8, 16, 32])
def test_round_trip(grid: int) -> None:
    processing = pytest.importorskip("transformers.models.kosmos2.processing_kosmos2")

    @settings(deadline=None, max_examples=60)
    @given(grounded_texts(grid))
    def check(grounded: GroundedText) -> None:
        written = render(grounded, grid)
        again = parse(written, grid)
        assert again.text == grounded.text
        assert [(s.text, s.start, s.end) for s in again.spans] == [
            (s.text, s.start, s.end) for s in grounded.spans
        ]
        for before, after in zip(grounded.spans, again.spans, strict=True):
            for a, b in zip(before.boxes, after.boxes, strict=True):
                assert all(abs(x - y) <= 1 / grid for x, y in zip(a, b, strict=True))
        assert not grounded.spans or again.problems == ()
        assert processing.clean_text_and_extract_entities_with_bboxes(written, grid) == (
            again.text,
            again.entities(),
        )
        # Parsed text is a fixed point: the quantiser of transformers inverts decoding.
        assert render(again, grid, "hugging_face") == written

    check()


@pytest.mark.parametrize(
    "text",
    [
        "</s>",
        "a <image>",
        "<patch_index_0001>",
        "<patch_index_9>",
        "</delimiter_of_multi_objects/>",
        "＜grounding＞",  # becomes <grounding> in the tokenizer's normalisation
    ],
)
def test_tags_in_what_users_write(text: str) -> None:
    assert has_tags(text)
    with pytest.raises(MarkupError, match="The question must not hold the tag <"):
        require_no_tags(text, "The question")


def test_what_only_looks_like_a_tag() -> None:
    for text in ("1 < 2 > 0", "<b>bold</b>", "patch_index_0001", "< object >", "<Object>"):
        assert not has_tags(text)
        assert require_no_tags(text, "The question") == text


def test_nothing_that_a_model_writes_raises() -> None:
    huge = f"<patch_index_{'9' * 5000}>"
    assert parse(f"a<object>{huge}{huge}</object>", 32).text == "a"


def test_constants_are_the_published_tags() -> None:
    assert markup.GROUNDING + markup.PHRASE_OPEN + markup.OBJECT_CLOSE == (
        "<grounding><phrase></object>"
    )
