"""Examples become tokens, weights and slots as spec sections 4.1 and 4.3 say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kosmos2_jax.data import examples
from kosmos2_jax.data.examples import Boxes, Example, Picture, Text, encode_example
from kosmos2_jax.errors import BoxError, MarkupError
from kosmos2_jax.grounding import prompts
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.grounded_text import GroundedText, Span
from kosmos2_jax.grounding.markup import parse
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.55, 0.1, 0.95, 0.9)
CAPTION = GroundedText(
    "An image of a red star and two rings.",
    (Span("a red star", 12, 22, (LEFT,)), Span("two rings", 27, 36, (LEFT, RIGHT))),
)


def _said(features: dict[str, np.ndarray], vocabulary: Kosmos2Vocabulary) -> list[str]:
    """The stretches of tokens that are learnt, as markup with "/s" for the end."""
    stretches: list[list[int]] = [[]]
    for token, weight in zip(features["targets"], features["loss_weights"], strict=True):
        if weight:
            stretches[-1].append(int(token))
        elif stretches[-1]:
            stretches.append([])
    return [
        vocabulary.decode(ids) + ("/s" if ids[-1] == vocabulary.eos_id else "")
        for ids in stretches
        if ids
    ]


def _text(features: dict[str, np.ndarray], vocabulary: Kosmos2Vocabulary) -> str:
    return vocabulary.decode(features["targets"]).rpartition("</image>")[2]


def test_the_worked_example_of_the_official_readme(assets: Path) -> None:
    """Spec section 4.3: 88 tokens; our slots have the ids that inference gives them."""
    folder = assets / "tokenizer"
    vocabulary = Kosmos2Vocabulary(folder / "sentencepiece.bpe.model", 32, folder / "dict.txt")
    text = "a wire hanger with a paper cover that reads we heart our customers"
    cropped = Box(0.0, 0.02763, 1.0, 0.96947)
    caption = GroundedText(text, (Span(text, 0, len(text), (cropped,)),))
    features = encode_example(examples.caption_example(PIXELS, caption), vocabulary, 64)
    words = vocabulary.encode(text)
    assert len(words) == 13
    expected = [0, 64003, *range(4, 68), 64004, 64012, 64007, *words]
    expected += [64008, 64009, 64013, 65036, 64010, 2]
    assert features["targets"].tolist() == expected
    assert len(expected) == 88
    assert features["loss_weights"].tolist() == [0.0] * 67 + [1.0] * 21
    assert features["image_slots"].tolist() == [-1, -1, *range(64), -1, *[-1] * 21]
    assert features["images"].shape == (1, 8, 8, 3)


def test_golden_caption(vocabulary: Kosmos2Vocabulary) -> None:
    v = vocabulary
    features = encode_example(examples.caption_example(PIXELS, CAPTION), v, 3)
    cells = [v.first_location_id + c for c in (0, 60, 4, 63)]
    image = [v.begin_image_id, 4, 5, 6, v.end_image_id]
    text = [v.grounding_id, *v.encode("An image of"), v.phrase_id, *v.encode("a red star")]
    text += [v.end_phrase_id, v.object_id, cells[0], cells[1], v.end_object_id, *v.encode("and")]
    text += [v.phrase_id, *v.encode("two rings"), v.end_phrase_id, v.object_id, cells[0]]
    text += [cells[1], v.delimiter_id, cells[2], cells[3], v.end_object_id]
    text += v.encode("rings.")[1:]
    ids = features["targets"].tolist()
    assert ids[:6] == [0, *image]
    assert ids[-1] == 2
    # The lower right corner of RIGHT is at 7.6 and 7.2 cells: cell 7 + 8 * 7.
    assert ids[6:-1] == text
    assert features["loss_weights"].tolist() == [0.0] * 6 + [1.0] * (len(text) + 1)
    assert features["image_slots"].tolist() == [-1, -1, 0, 1, 2, -1] + [-1] * (len(text) + 1)
    np.testing.assert_array_equal(features["images"][0], PIXELS)
    assert {k: f.dtype.name for k, f in features.items()} == {
        "targets": "int32",
        "loss_weights": "float32",
        "image_slots": "int32",
        "images": "uint8",
    }


def test_a_caption_without_boxes_is_plain(vocabulary: Kosmos2Vocabulary) -> None:
    for spans in ((), (Span("a red star", 0, 10),)):
        example = examples.caption_example(PIXELS, GroundedText("a red star", spans))
        assert _text(encode_example(example, vocabulary, 2), vocabulary) == " a red star"


def test_referring_learns_boxes_only(vocabulary: Kosmos2Vocabulary) -> None:
    example = examples.referring_example(PIXELS, [("the red star", (LEFT,))])
    features = encode_example(example, vocabulary, 2)
    box = "<object><patch_index_0000><patch_index_0060></object>"
    assert _text(features, vocabulary) == f"<grounding><phrase> the red star</phrase>{box}"
    assert _said(features, vocabulary) == [f"{box}/s"]


def test_the_prompt_of_referring_is_what_prediction_asks(vocabulary: Kosmos2Vocabulary) -> None:
    example = examples.referring_example(PIXELS, [("the red star", (LEFT,))])
    ids = encode_example(example, vocabulary, 2)["targets"].tolist()
    prompt = vocabulary.encode_markup(prompts.ground("the red star"))
    assert ids[5 : 5 + len(prompt)] == prompt


def test_several_expressions_share_one_picture(vocabulary: Kosmos2Vocabulary) -> None:
    pairs = [("the red star", (LEFT,)), ("the ring", (RIGHT, LEFT))]
    features = encode_example(examples.referring_example(PIXELS, pairs), vocabulary, 2)
    one = "<object><patch_index_0000><patch_index_0060></object>"
    two = (
        "<object><patch_index_0004><patch_index_0063></delimiter_of_multi_objects/>"
        "<patch_index_0000><patch_index_0060></object>"
    )
    assert _said(features, vocabulary) == [one, f"{two}/s"]
    parsed = parse(_text(features, vocabulary), 8)
    assert [(span.text, len(span.boxes)) for span in parsed.spans] == [
        ("the red star", 1),
        ("the ring", 2),
    ]


def test_phrase_grounding_asks_after_the_words_before(vocabulary: Kosmos2Vocabulary) -> None:
    features = encode_example(examples.grounding_example(PIXELS, CAPTION, 1), vocabulary, 2)
    text = _text(features, vocabulary)
    assert text.startswith(
        "<grounding> An image of a red star and<phrase> two rings</phrase><object>"
    )
    (said,) = _said(features, vocabulary)
    assert said.startswith("<object>") and said.endswith("</object>/s")


def test_phrase_grounding_prompt_of_the_official_script(assets: Path) -> None:
    """Spec section 5.2, tokens of "A man in a blue hard hat"."""
    vocabulary = Kosmos2Vocabulary(assets / "tokenizer" / "sentencepiece.bpe.model", 32)
    text = "A man in a blue hard hat"
    caption = GroundedText(text, (Span("a blue hard hat", 9, 24, (LEFT,)),))
    ids = vocabulary.encode_markup(examples.grounding_prompt(caption, 0))
    assert ids == [64012, 95, 242, 12, 64007, 10, 1486, 354, 3958, 64008]


def test_questions_learn_answers_only(vocabulary: Kosmos2Vocabulary) -> None:
    pairs = [("is there a red shape?", "yes"), ("what is the blue shape?", "circle")]
    features = encode_example(examples.question_example([PIXELS], pairs), vocabulary, 2)
    assert _text(features, vocabulary) == (
        " Question: is there a red shape? Answer: yes"
        " Question: what is the blue shape? Answer: circle"
    )
    assert _said(features, vocabulary) == ["yes", "circle/s"]


def test_pictures_anywhere_number_their_slots(vocabulary: Kosmos2Vocabulary) -> None:
    """Interleaved documents: `</image>` of a later picture is not learnt either."""
    example = Example((Text("a star", True), Picture(PIXELS), Picture(PIXELS), Text("yes", True)))
    features = encode_example(example, vocabulary, 2)
    assert features["image_slots"].tolist() == [-1] * 4 + [0, 1, -1, -1, 2, 3, -1, -1, -1]
    assert features["loss_weights"].tolist() == [0, 1, 1, *[0] * 8, 1, 1]
    assert features["images"].shape == (2, 8, 8, 3)


def test_text_alone_has_no_pictures(vocabulary: Kosmos2Vocabulary) -> None:
    features = encode_example(Example((Text("a star", True),)), vocabulary, 2)
    assert features["images"].shape[0] == 0
    assert set(features["image_slots"].tolist()) == {-1}


def test_quantiser_is_used(vocabulary: Kosmos2Vocabulary) -> None:
    example = examples.referring_example(PIXELS, [("the star", (Box(0.5, 0.5, 0.75, 0.75),))])
    official, other = (
        encode_example(example, vocabulary, 2, quantiser)["targets"][-3] - vocabulary.location_id(0)
        for quantiser in ("official", "hugging_face")
    )
    assert (official, other) == (6 + 8 * 6, 5 + 8 * 5)


@pytest.mark.parametrize(
    ("example", "error"),
    [
        (Example((Picture(PIXELS), Text("a star", False))), MarkupError),
        (Example((Boxes((Box(0.5, 0.0, 0.4, 1.0),)),)), BoxError),
        (Example((Boxes((Box(0.0, 0.0, float("nan"), 1.0),)),)), BoxError),
    ],
)
def test_bad_examples_are_refused(
    example: Example, error: type[Exception], vocabulary: Kosmos2Vocabulary
) -> None:
    with pytest.raises(error):
        encode_example(example, vocabulary, 2)


def test_tags_in_what_people_wrote_are_refused() -> None:
    with pytest.raises(MarkupError):
        examples.referring_example(PIXELS, [("a <phrase> star", (LEFT,))])
    with pytest.raises(MarkupError):
        examples.question_example([PIXELS], [("what?", "a </s> star")])
    with pytest.raises(MarkupError):
        bad = GroundedText("<image> a star", (Span("a star", 8, 14, (LEFT,)),))
        examples.grounding_example(PIXELS, bad, 0)


def test_words_beside_location_tokens_weigh_as_told(vocabulary: Kosmos2Vocabulary) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    box = Box(0.0, 0.0, 0.5, 0.5)
    grounded = examples.referring_example(pixels, [("the dog", (box,))], learn_words=True)
    features = encode_example(grounded, vocabulary, 2, word_weight=0.25)
    places = [vocabulary.is_location(int(token)) for token in features["targets"]]
    assert set(features["loss_weights"][places]) == {1.0}
    assert set(features["loss_weights"][~np.array(places)]) == {0.0, 0.25}
    question = examples.question_example([pixels], [("a?", "b")])
    answer = encode_example(question, vocabulary, 2, word_weight=0.25)
    assert set(answer["loss_weights"]) == {0.0, 1.0}
