"""Documents of every kind become tokens, weights, slots and pictures (spec 4.1, 4.3, 4.4, 4.7)."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos2_jax.data.chance import chance
from kosmos2_jax.data.documents import Document, from_tf_example, to_tf_example
from kosmos2_jax.data.encode_document import (
    GENERATION_TEMPLATES,
    EncodeSettings,
    annotations_source,
    encode_document,
    generation_prompt,
)
from kosmos2_jax.data.grit import GritConfig
from kosmos2_jax.data.skips import DataError, Skips
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding import prompts
from kosmos2_jax.grounding.boxes import Box
from kosmos2_jax.grounding.markup import parse
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

JPEG = b"\xff\xd8 no picture, but nobody looks \xff\xd9\0\0"
CAPTION = "a wire hanger with a paper cover that reads we heart our customers"
REF_EXPS = [  # the sample of the official README
    [19, 66, 0.019644069503434333, 0.31054004033406574, 0.9622142865754519, 0.9603442351023356]
    + [0.79298526],
    [0, 66, 0.019422357885505368, 0.027634161214033764, 0.9593302408854166, 0.969467560450236]
    + [0.67520964],
]
ALWAYS = EncodeSettings(grit=GritConfig(grounding_probability=1.0))
TWO_DOGS = [[4, 12, 0.1, 0.1, 0.4, 0.9, 0.9], [4, 12, 0.5, 0.1, 0.9, 0.9, 0.8]]
TWO_DOGS += [[16, 22, 0.0, 0.5, 1.0, 1.0, 0.7]]


@pytest.fixture(scope="module")
def released(assets: Path) -> Kosmos2Vocabulary:
    return Kosmos2Vocabulary(assets / "tokenizer" / "sentencepiece.bpe.model")


def caption_document(caption: object = "the image of a", key: str = "0") -> Document:
    return Document("caption", (JPEG,), {"caption": caption}, None, "cc3m", key)


def grit_document(key: str = "0", **changes: Any) -> Document:
    content = {"caption": CAPTION, "noun_chunks": [], "ref_exps": REF_EXPS}
    document = Document("grounded", (JPEG,), content, (1024, 693), "grit", key)
    return dataclasses.replace(document, **changes)


def dogs_document(key: str = "0") -> Document:
    content = {"caption": "The two dogs on a sofa.", "noun_chunks": [], "ref_exps": TWO_DOGS}
    return grit_document(key, content=content, size=(100, 100))


def page(parts: list[Any], images: int = 1) -> Document:
    pictures = tuple(b"%d" % i for i in range(images))
    return Document("interleaved", pictures, {"parts": parts}, None, "mmc4", "0")


def conversation(turns: Any, images: int = 1) -> Document:
    return Document("instruction", (JPEG,) * images, {"turns": turns}, None, "llava", "0")


def encode(
    document: Document,
    vocabulary: Kosmos2Vocabulary,
    settings: EncodeSettings = EncodeSettings(),  # noqa: B008 (frozen)
    seed: int = 0,
    draw: int = 0,
) -> dict[str, np.ndarray]:
    """The only example of a document."""
    (features,) = encode_document(document, vocabulary, settings, seed, Skips(), draw)
    return features


def skipped(
    document: Document, vocabulary: Kosmos2Vocabulary, settings: EncodeSettings = ALWAYS
) -> dict[str, int]:
    """The reasons for which a document has no example."""
    skips = Skips()
    assert encode_document(document, vocabulary, settings, 0, skips) == []
    assert skips.num_kept(document.source) == 0
    return skips.reasons(document.source)


def said(features: dict[str, np.ndarray], vocabulary: Kosmos2Vocabulary) -> list[str]:
    """The stretches that are learnt, with "/s" for the end."""
    stretches: list[list[int]] = [[]]
    for token, weight in zip(features["targets"], features["loss_weights"], strict=True):
        if weight:
            stretches[-1].append(int(token))
        else:
            stretches.append([])
    return [
        vocabulary.decode(ids) + ("/s" if ids[-1] == vocabulary.eos_id else "")
        for ids in stretches
        if ids
    ]


def after_picture(features: dict[str, np.ndarray], vocabulary: Kosmos2Vocabulary) -> str:
    return vocabulary.decode(features["targets"]).rpartition("</image>")[2]


def check(features: dict[str, np.ndarray], num_latents: int, max_tokens: int) -> None:
    """What the packer and the model rely on."""
    ids, weights, slots = (features[k] for k in ("targets", "loss_weights", "image_slots"))
    assert (ids.dtype, weights.dtype, slots.dtype) == (np.int32, np.float32, np.int32)
    assert ids.shape == weights.shape == slots.shape and 2 <= len(ids) <= max_tokens
    assert features["images"].dtype == object and features["images"].ndim == 1
    assert slots[slots >= 0].tolist() == list(range(num_latents * len(features["images"])))
    assert not weights[slots >= 0].any() and weights[0] == 0 and weights[-1] > 0
    assert ids[0] == 0 and not (ids[:-1] == 2)[slots[:-1] >= 0].any()


# The worked example


def test_the_worked_example_of_the_spec(released: Kosmos2Vocabulary) -> None:
    """Spec 4.3: `0, 64003x65, 64004, 64012, 64007, <13 ids>, 64008, 64009, 64013, 65036, 64010, 2`.

    The released training gives slots the id 64003, ours those of inference, 4 to 67 (traps T-14
    and T-15); the model looks at neither.
    """
    skips = Skips()
    (features,) = encode_document(grit_document(), released, ALWAYS, 0, skips)
    words = released.encode(CAPTION)
    assert len(words) == 13
    ids, slots = features["targets"], features["image_slots"]
    assert np.where(slots >= 0, 64003, ids).tolist() == (
        [0, *[64003] * 65, 64004, 64012, 64007, *words, 64008, 64009, 64013, 65036, 64010, 2]
    )
    assert len(ids) == 88
    assert ids[slots >= 0].tolist() == list(range(4, 68))
    assert features["loss_weights"].tolist() == [0.0] * 67 + [1.0] * 21
    assert slots.tolist() == [-1, -1, *range(64), -1, *[-1] * 21]
    assert features["images"].tolist() == [JPEG]
    assert skips.to_dict() == {
        "grit": {"kept": 1, "reasons": {}},
        "grit annotations": {
            "kept": 1,
            "reasons": {"filtered: phrase is contained in another one": 1},
        },
    }


# Captions


def test_a_caption_is_learnt_from_the_token_after_the_picture(released: Kosmos2Vocabulary) -> None:
    features = encode(caption_document(), released, EncodeSettings(num_latents=2))
    assert features["targets"].tolist() == [0, 64003, 4, 5, 64004, 5, 1648, 9, 10, 2]
    assert features["loss_weights"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_line_breaks_in_captions_are_blanks(released: Kosmos2Vocabulary) -> None:
    features = encode(caption_document("image\nin\ta"), released, EncodeSettings(num_latents=1))
    assert features["targets"].tolist() == [0, 64003, 4, 64004, 1648, 12, 10, 2]


@pytest.mark.parametrize("tag", ["<image>", "</s>", "<patch_index_0003>", "＜grounding＞"])
def test_captions_that_hold_a_tag_are_skipped(tag: str, released: Kosmos2Vocabulary) -> None:
    """Also in other forms of its characters, which the tokenizer makes the same."""
    assert skipped(caption_document(f"a {tag} dog"), released) == {"caption holds a tag": 1}


def test_long_captions_are_cut_without_an_end(released: Kosmos2Vocabulary) -> None:
    skips = Skips()
    few = EncodeSettings(num_latents=2, max_tokens=8)
    (features,) = encode_document(caption_document(), released, few, 0, skips)
    assert features["targets"].tolist() == [0, 64003, 4, 5, 64004, 5, 1648, 9]
    assert skips.reasons("cc3m") == {"clipped: example longer than a sequence": 1}
    assert skips.num_kept("cc3m") == 1
    none = dataclasses.replace(few, max_tokens=5)
    assert skipped(caption_document(), released, none) == {
        "clipped: example longer than a sequence": 1,
        "nothing to learn": 1,
    }


# Grounded captions


def test_grounding_is_a_matter_of_seed_draw_and_key(released: Kosmos2Vocabulary) -> None:
    def grounded(seed: int, draw: int) -> list[bool]:
        settings = EncodeSettings(num_latents=1)
        return [
            released.grounding_id
            in encode(dogs_document(str(i)), released, settings, seed, draw)["targets"]
            for i in range(400)
        ]

    first = grounded(0, 0)
    assert first == grounded(0, 0)
    for other in (grounded(1, 0), grounded(0, 1)):
        assert 0.4 < np.mean(other) < 0.6
        assert 0.4 < np.mean(np.array(first) != other) < 0.6


def test_without_grounding_the_caption_is_plain(released: Kosmos2Vocabulary) -> None:
    never = EncodeSettings(grit=GritConfig(grounding_probability=0.0))
    plain = encode(dataclasses.replace(caption_document(CAPTION)), released)
    boxless = grit_document(content={"caption": CAPTION, "ref_exps": [], "noun_chunks": []})
    for features in (encode(grit_document(), released, never), encode(boxless, released, ALWAYS)):
        assert features["targets"].tolist() == plain["targets"].tolist()
        assert features["loss_weights"].tolist() == plain["loss_weights"].tolist()


def test_a_grounded_caption_parses_back(released: Kosmos2Vocabulary) -> None:
    settings = EncodeSettings(grit=GritConfig(grounding_probability=1.0, image_mode="square"))
    text = after_picture(encode(dogs_document(), released, settings), released)
    assert text.startswith("<grounding> The<phrase> two dogs</phrase><object>")
    grounded = parse(text, 32)
    assert (grounded.text, grounded.problems) == ("The two dogs on a sofa.", ())
    boxes = [row[2:6] for row in TWO_DOGS]
    (dogs, sofa) = grounded.spans
    assert (dogs.text, sofa.text) == ("two dogs", "a sofa")
    np.testing.assert_allclose([*dogs.boxes, *sofa.boxes], boxes, atol=1 / 32)


def test_grounded_captions_are_not_cut(released: Kosmos2Vocabulary) -> None:
    few = dataclasses.replace(ALWAYS, max_tokens=87)
    assert skipped(grit_document(), released, few) == {"grounded example longer than a sequence": 1}


def test_phrases_inside_tokens_discard_the_caption(released: Kosmos2Vocabulary) -> None:
    content = {"caption": "homeopathic", "ref_exps": [[7, 11, 0.1, 0.1, 0.9, 0.9, 0.9]]}
    document = grit_document(content=content)
    assert skipped(document, released) == {"phrase begins inside a token": 1}
    never = EncodeSettings(grit=GritConfig(grounding_probability=0.0))
    assert encode(document, released, never)["targets"].shape == (69,)


def test_phrases_without_tokens_of_their_own_are_counted(released: Kosmos2Vocabulary) -> None:
    rows = [[2, 6, 0.1, 0.1, 0.9, 0.9, 0.9], [6, 9, 0.2, 0.2, 0.9, 0.9, 0.9]]
    document = grit_document(content={"caption": "a snowman", "ref_exps": rows})
    skips = Skips()
    (features,) = encode_document(document, released, ALWAYS, 0, skips)
    text = after_picture(features, released)
    assert text.startswith("<grounding> a<phrase> snowman</phrase><object>")
    assert text.endswith("</object>") and text.count("<object>") == 1
    counts = {"kept": 1, "reasons": {"filtered: phrase has no tokens of its own": 1}}
    assert skips.to_dict()["grit annotations"] == counts


@pytest.mark.parametrize("size", [None, (0, 5), (5, -1), ("a", 3), (10**400, 1)])
def test_a_crop_needs_the_size(size: Any, released: Kosmos2Vocabulary) -> None:
    reason = {"size of the picture is missing or impossible": 1}
    assert skipped(grit_document(size=size), released) == reason
    square = EncodeSettings(grit=GritConfig(grounding_probability=1.0, image_mode="square"))
    if size is None:
        assert (
            released.grounding_id in encode(grit_document(size=None), released, square)["targets"]
        )


def test_malformed_annotations_are_counted_apart(released: Kosmos2Vocabulary) -> None:
    skips = Skips()
    content = {"caption": CAPTION, "ref_exps": [*REF_EXPS, [5, 2, 0, 0, 1, 1, 0.9], "x"]}
    assert encode_document(grit_document(content=content), released, ALWAYS, 0, skips)
    assert skips.num_skipped("grit") == 0
    assert skips.num_skipped(annotations_source("grit")) == 2
    with pytest.raises(DataError, match="66.7% of source 'grit annotations'"):
        skips.check()


def test_boxes_need_location_tokens(assets: Path) -> None:
    kosmos1 = Kosmos2Vocabulary(assets / "tokenizer" / "sentencepiece.bpe.model", 0)
    with pytest.raises(ConfigError, match="'grit' has boxes"):
        encode(grit_document(), kosmos1)
    assert encode(caption_document(), kosmos1)["targets"][-1] == 2


# Grounded instructions


def instruction_settings(comprehension: float) -> EncodeSettings:
    grit = GritConfig(image_mode="square")
    return EncodeSettings(
        grounded_as="instruction", comprehension_probability=comprehension, grit=grit
    )


def test_comprehension_learns_the_boxes(released: Kosmos2Vocabulary) -> None:
    seen = set()
    for draw in range(20):
        features = encode(dogs_document(), released, instruction_settings(1.0), 0, draw)
        text = after_picture(features, released)
        (answer,) = said(features, released)
        prompt = text.removesuffix(answer.removesuffix("/s"))
        (phrase,) = re.findall("<phrase> (.*)</phrase>", prompt)
        assert prompt == prompts.ground(phrase)
        (span,) = parse(text, 32).spans
        seen.add((phrase, len(span.boxes)))
        assert answer.startswith("<object>") and answer.endswith("</object>/s")
    assert seen == {("two dogs", 2), ("a sofa", 1)}


def test_generation_learns_the_expression(released: Kosmos2Vocabulary) -> None:
    seen = set()
    for draw in range(100):
        features = encode(dogs_document(), released, instruction_settings(0.0), 0, draw)
        text = after_picture(features, released)
        (answer,) = said(features, released)
        assert answer in ("two dogs./s", "a sofa./s")
        seen.add(re.sub("<object>.*?</object>", lambda m: f"[{m[0].count('patch') // 2}]", text))
    # The released way to read prompts puts a blank before a mark that follows a tag (trap T-34).
    templates = [
        "<grounding> What is<phrase> it</phrase>[{}] ? It is",
        "<grounding> What is<phrase> this</phrase>[{}] ? This is",
        "<grounding> Describe<phrase> this object</phrase>[{}] . This object is",
        "<grounding><phrase> It</phrase>[{}] is",
        "<grounding><phrase> This</phrase>[{}] is",
        "<grounding><phrase> The object</phrase>[{}] is",
    ]
    expressions = {1: " a sofa.", 2: " two dogs."}
    assert seen == {t.format(n) + said for t in templates for n, said in expressions.items()}


def test_the_prompt_of_generation_is_what_prediction_asks() -> None:
    box = Box(0.1, 0.2, 0.3, 0.4)
    assert generation_prompt(3, [box], 32) == prompts.refer(box, 32)
    assert len(GENERATION_TEMPLATES) == 6


def test_both_kinds_of_instruction_are_drawn(released: Kosmos2Vocabulary) -> None:
    kinds = [
        "object"
        in said(encode(dogs_document(str(i)), released, instruction_settings(0.5)), released)[0]
        for i in range(200)
    ]
    assert 0.4 < np.mean(kinds) < 0.6


def test_a_caption_without_phrases_has_no_instruction(released: Kosmos2Vocabulary) -> None:
    document = grit_document(content={"caption": CAPTION, "ref_exps": []})
    reasons = skipped(document, released, instruction_settings(0.5))
    assert reasons == {"filtered: caption without a phrase to ask for": 1}


def test_phrases_that_markup_cannot_hold_are_not_asked_for(released: Kosmos2Vocabulary) -> None:
    content = {"caption": "1 < 2 dogs", "ref_exps": [[0, 10, 0.1, 0.1, 0.9, 0.9, 0.9]]}
    document = grit_document(content=content)
    reasons = skipped(document, released, instruction_settings(1.0))
    assert reasons == {"phrase holds '<'": 1}
    generated = encode(document, released, instruction_settings(0.0))
    assert said(generated, released) == ["1 < 2 dogs./s"]


# Pages


def test_pages_learn_text_only(released: Kosmos2Vocabulary) -> None:
    document = page([0, "the image", 1, 1, "of\na", " \n", "in"], images=3)
    features = encode(document, released, EncodeSettings(num_latents=2))
    picture = [64003, 4, 5, 64004]
    assert features["targets"].tolist() == (
        [0, *picture, 5, 1648, *picture, *picture, 9, 10, 12, 2]
    )
    weights = [0, *[0] * 4, 1, 1, *[0] * 8, 1, 1, 1, 1]
    assert features["loss_weights"].tolist() == weights
    assert features["image_slots"].tolist() == (
        [-1, -1, 0, 1, -1, -1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, -1, -1, -1]
    )
    assert features["images"].tolist() == [b"0", b"1", b"1"]


def test_pages_are_cut_before_the_sixth_picture(released: Kosmos2Vocabulary) -> None:
    parts = [x for i in range(7) for x in (i, "the")]
    skips = Skips()
    settings = EncodeSettings(num_latents=1)
    (features,) = encode_document(page(parts, 7), released, settings, 0, skips)
    assert features["targets"].tolist() == [0, *[64003, 4, 64004, 5] * 5]
    assert features["images"].tolist() == [b"0", b"1", b"2", b"3", b"4"]
    assert skips.reasons("mmc4") == {"clipped: page with too many pictures": 1}


def test_pictures_and_tokens_are_cut_together(released: Kosmos2Vocabulary) -> None:
    parts = ["the", 0, "image of", 1, "in a"]
    full = [0, 5, 64003, 4, 5, 64004, 1648, 9, 64003, 4, 5, 64004, 12, 10, 2]
    lengths = {15: 15, 14: 14, 13: 13, 12: 8, 9: 8, 8: 8, 7: 7, 6: 2, 2: 2}
    for most, length in lengths.items():
        settings = EncodeSettings(num_latents=2, max_tokens=most)
        features = encode(page(parts, 2), released, settings)
        assert features["targets"].tolist() == full[:length]
        assert len(features["images"]) == (2 if length > 12 else 1 if length > 6 else 0)
        check(features, 2, most)


def test_pictures_after_the_last_text_teach_nothing(released: Kosmos2Vocabulary) -> None:
    skips = Skips()
    (features,) = encode_document(page(["the", 0]), released, EncodeSettings(), 0, skips)
    assert features["targets"].tolist() == [0, 5]
    assert features["images"].shape == (0,)
    assert skips.reasons("mmc4") == {"clipped: page that ends with pictures": 1}


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([0, "the", 2], "part of a page is neither text nor one of its pictures"),
        ([-1, "the"], "part of a page is neither text nor one of its pictures"),
        ([True, "the"], "part of a page is neither text nor one of its pictures"),
        ([None, "the"], "part of a page is neither text nor one of its pictures"),
        ([0, "\ud800"], "text is not valid Unicode"),
        ([], "nothing to learn"),
        (["\u200b"], "nothing to learn"),
        ([""], "nothing to learn"),
        ("the", "parts are missing or no list"),
        (None, "parts are missing or no list"),
    ],
)
def test_bad_pages(parts: Any, reason: str, released: Kosmos2Vocabulary) -> None:
    assert skipped(page(parts, images=2), released) == {reason: 1}


def test_a_page_of_pictures_has_nothing_to_learn(released: Kosmos2Vocabulary) -> None:
    reasons = skipped(page([0]), released)
    assert reasons == {"clipped: page that ends with pictures": 1, "nothing to learn": 1}


# Instructions


def test_instructions_learn_answers(released: Kosmos2Vocabulary) -> None:
    turns = [["What is it?", "a dog"], ["Where?", "in the field."]]
    features = encode(conversation(turns), released)
    text = after_picture(features, released)
    assert text == " Question: What is it? Answer: a dog Question: Where? Answer: in the field."
    assert said(features, released) == ["a dog", "in the field./s"]
    assert features["images"].tolist() == [JPEG]
    prompt = released.encode_markup(prompts.ask("What is it?"))
    assert features["targets"][67 : 67 + len(prompt)].tolist() == prompt
    alone = encode(conversation(turns, images=0), released)
    assert alone["targets"].tolist() == [0, *features["targets"][67:]]
    assert alone["images"].shape == (0,)


def test_long_conversations_end_with_a_learnt_token(released: Kosmos2Vocabulary) -> None:
    turns = [["What is it?", "a dog"], ["Where?", "in the field."]]
    full = encode(conversation(turns, images=0), released)
    cut = encode(conversation(turns, images=0), released, EncodeSettings(max_tokens=17))
    assert said(cut, released) == ["a dog"]
    assert cut["targets"].tolist() == full["targets"][: len(cut["targets"])].tolist()


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([["What?", ""]], "answer is empty"),
        ([[" \n", "a"]], "question is empty"),
        ([["What?", None]], "answer is missing or no text"),
        ([["What?"]], "turn is not a question and an answer"),
        (["What?"], "turn is not a question and an answer"),
        ([["<image> What?", "a"]], "question holds a tag"),
        ([["What?", "a </s>"]], "answer holds a tag"),
        ([["What?", "\u200b"]], "nothing to learn"),
        ([], "nothing to learn"),
        ({}, "turns are missing or no list"),
    ],
)
def test_bad_instructions(turns: Any, reason: str, released: Kosmos2Vocabulary) -> None:
    assert skipped(conversation(turns), released) == {reason: 1}


def test_instructions_with_too_many_pictures(released: Kosmos2Vocabulary) -> None:
    document = conversation([["What?", "a"]], images=6)
    assert skipped(document, released) == {"instruction with too many pictures": 1}


# Text, and what holds for all


def test_text_alone_gives_sequences_of_its_own(released: Kosmos2Vocabulary) -> None:
    document = Document("text", (), {"text": "the image\nof a\nin"}, None, "pile", "0")
    skips = Skips()
    few = EncodeSettings(max_tokens=6)
    encoded = encode_document(document, released, few, 0, skips)
    assert [e["targets"].tolist() for e in encoded] == [
        [0, 5, 1648, 64006],
        [0, 9, 10, 64006, 12, 2],
    ]
    assert skips.to_dict() == {"pile": {"kept": 1, "reasons": {}}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": ()}, "caption without exactly one picture"),
        ({"images": (JPEG, JPEG)}, "caption without exactly one picture"),
        ({"images": (b"",)}, "picture without any bytes"),
        ({"content": {}}, "caption is missing or no text"),
        ({"content": []}, "content is missing"),
        ({"content": {"caption": ["a"]}}, "caption is missing or no text"),
        ({"content": {"caption": " \n\t"}}, "caption is empty"),
        ({"content": {"caption": "\ufffd"}}, "nothing to learn"),
        ({"content": {"caption": "a \udc00"}}, "caption is not valid Unicode"),
    ],
)
def test_bad_captions(changes: dict[str, Any], reason: str, released: Kosmos2Vocabulary) -> None:
    assert skipped(dataclasses.replace(caption_document(), **changes), released) == {reason: 1}


def test_unknown_kinds_are_an_error(released: Kosmos2Vocabulary) -> None:
    document = dataclasses.replace(caption_document(), kind="video")
    with pytest.raises(DataError, match="unknown kind 'video'"):
        encode(document, released)


@pytest.mark.parametrize(
    "document", [caption_document(), grit_document(), page([0, "a"]), conversation([["a?", "b"]])]
)
def test_stored_documents_encode_the_same(document: Document, released: Kosmos2Vocabulary) -> None:
    first = encode(document, released)
    again = encode(from_tf_example(to_tf_example(document)), released)
    for name, values in first.items():
        assert values.tolist() == again[name].tolist()


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-2, 5),
        st.floats(),
        st.floats(0, 1),
        st.text(),
        st.sampled_from(["a dog", "<image>", "<phrase>", "\ud800", "a\tb\n"]),
    ),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=12,
)
TEXT = st.one_of(st.text(st.characters(exclude_categories=())), JSON)
ROW = st.tuples(
    *[st.one_of(st.integers(0, 12), JSON)] * 2, *[st.one_of(st.floats(-0.1, 1.1), JSON)] * 5
).map(list)
TURN = st.one_of(st.tuples(TEXT, TEXT).map(list), JSON)
CONTENT = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "text": TEXT,
            "caption": TEXT,
            "noun_chunks": st.lists(st.one_of(ROW, JSON), max_size=4),
            "ref_exps": st.one_of(st.lists(ROW, max_size=4), JSON),
            "parts": st.one_of(st.lists(st.one_of(st.integers(-1, 8), TEXT), max_size=8), JSON),
            "turns": st.one_of(st.lists(TURN, max_size=3), JSON),
        },
    ),
    JSON,
)
SIZE = st.one_of(st.none(), st.tuples(st.integers(-1, 3000), st.integers(1, 3000)))


@given(
    st.sampled_from(["text", "caption", "grounded", "interleaved", "instruction"]),
    st.lists(st.sampled_from([JPEG, b"", b"\0"]), max_size=7),
    CONTENT,
    SIZE,
    st.sampled_from(["caption", "instruction"]),
    st.integers(2, 60),
)
@settings(deadline=None, max_examples=1500)
def test_anything_is_encoded_or_counted(
    released: Kosmos2Vocabulary,
    kind: str,
    images: list[bytes],
    content: Any,
    size: Any,
    grounded_as: str,
    max_tokens: int,
) -> None:
    document = Document(kind, tuple(images), content, size, "any", "0")
    skips = Skips()
    grit = GritConfig(grounding_probability=0.9, image_size=32)
    settings_ = EncodeSettings(2, max_tokens, 5, grounded_as=grounded_as, grit=grit)
    encoded = encode_document(document, released, settings_, 0, skips)
    left_out = [r for r in skips.reasons("any") if not r.startswith("clipped: ")]
    assert skips.num_kept("any") == bool(encoded)
    assert len(left_out) == (not encoded)
    for features in encoded:
        check(features, 2, max_tokens)


def test_chances_are_even_repeatable_and_independent() -> None:
    values = np.array(
        [chance(0, epoch, "grit", str(i), "a") for epoch in range(2) for i in range(9999)]
    )
    assert values.min() >= 0 and values.max() < 1
    counts, _ = np.histogram(values, 10, (0, 1))
    assert counts.min() > 1800 and counts.max() < 2200
    assert abs(np.corrcoef(values[:9999], values[9999:])[0, 1]) < 0.05
    assert chance(1, "a") != chance("1", "a")
    assert chance("a", "b,c") != chance("a,b", "c")
    assert chance("\ud800") == chance("\ud800")
    # The same for ever, or else a resumed run would not repeat.
    assert chance(0, 0, "grit", "000373938", "grounding") == 0.08305293129687552


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grounded_as": "answer"}, "'caption', 'instruction' or 'referring', not 'answer'"),
        ({"comprehension_probability": -0.1}, "at least 0 and at most 1, not -0.1"),
        ({"max_images": 0}, "at least 1"),
        ({"max_tokens": 1}, "at least 2"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncodeSettings(**changes)
