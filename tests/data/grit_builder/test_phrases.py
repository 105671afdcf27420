"""Noun chunks and expressions, with spaCy's real model and with trees that are given."""

from __future__ import annotations

import pytest

spacy = pytest.importorskip("spacy")

from kosmos2_jax.data.grit_builder import phrases  # noqa: E402
from kosmos2_jax.data.grit_builder.stage import GritBuildConfig  # noqa: E402
from kosmos2_jax.errors import ConfigError  # noqa: E402

HANGER = "a wire hanger with a paper cover that reads we heart our customers"


@pytest.fixture(scope="module")
def parser():
    return phrases.load_parser(GritBuildConfig().parser)


def found(caption: str, parser) -> dict[str, str]:
    """Expressions by chunk."""
    ((chunks, _),) = phrases.find_phrases([caption], parser)
    assert all(caption[slice(*chunk.span)] == chunk.text for chunk in chunks)
    return {chunk.text: caption[slice(*chunk.expression)] for chunk in chunks}


@pytest.mark.parametrize(
    ("caption", "expressions"),
    [
        (  # the paper's example (spec section 6)
            "a dog in a field of flowers",
            {
                "a dog": "a dog in a field of flowers",
                "a field": "a field of flowers",
                "flowers": "flowers",
            },
        ),
        (
            "A couple of dogs in a field sit next to a small red fire hydrant.",
            {
                "A couple": "A couple of dogs in a field",
                "dogs": "dogs",
                "a field": "a field",
                "a small red fire hydrant": "a small red fire hydrant",
            },
        ),
        (  # conjuncts are not expanded
            "the man in a red shirt and the woman with a blue hat",
            {
                "the man": "the man",
                "a red shirt": "a red shirt",
                "the woman": "the woman",
                "a blue hat": "a blue hat",
            },
        ),
        ("Woman holding a cup of coffee", None),
        ("the dog's tail", {"the dog's tail": "the dog's tail"}),
        ("", {}),
        ("running fast", {}),
        ("雪だるま", None),
    ],
)
def test_captions_that_the_model_parses_rightly(caption: str, expressions, parser) -> None:
    chunks = found(caption, parser)
    if expressions is not None:
        assert chunks == expressions
    elif caption.startswith("Woman"):
        assert chunks["Woman"] == caption and chunks["a cup"] == "a cup of coffee"


def test_pronouns_and_abstract_nouns_are_dropped_and_counted(parser) -> None:
    captions = ["they are playing football in the park with him", "freedom and love in the time"]
    (first, dropped), (second, abstract) = phrases.find_phrases(captions, parser)
    assert [chunk.text for chunk in first] == ["football", "the park"] and not second
    assert dropped == {"clipped: chunk dropped: pronoun": 2}
    assert abstract == {"clipped: chunk dropped: abstract noun": 3}


def test_the_sample_of_the_published_readme(parser) -> None:
    """Its tree is given: the small model takes "hanger" for an adjective."""
    words = HANGER.split()
    # wire hanger with a paper cover that reads we heart our customers
    heads = [2, 2, 2, 2, 6, 6, 3, 8, 6, 10, 8, 12, 10]
    deps = ("det compound ROOT prep det compound pobj nsubj relcl nsubj ccomp poss dobj").split()
    pos = "DET NOUN NOUN ADP DET NOUN NOUN PRON VERB PRON VERB PRON NOUN".split()
    lemmas = "a wire hanger with a paper cover that read we heart our customer".split()
    doc = spacy.tokens.Doc(
        parser.vocab, words=words, heads=heads, deps=deps, pos=pos, lemmas=lemmas,
        sent_starts=[True] + [False] * 12,
    )  # fmt: skip
    chunks, dropped = phrases.phrases_of(doc)
    # The published offsets (spec section 4.3).
    assert [(c.span, c.expression) for c in chunks[:2]] == [
        ((0, 13), (0, 66)),
        ((19, 32), (19, 66)),
    ]
    assert [c.text for c in chunks[2:]] == ["our customers"]
    assert dropped == {"clipped: chunk dropped: pronoun": 2}


def test_words_that_do_not_follow_one_another_are_not_an_expression(parser) -> None:
    words = "a dog sleeps with spots .".split()
    doc = spacy.tokens.Doc(
        parser.vocab, words=words, heads=[1, 2, 2, 1, 3, 2], deps="det nsubj ROOT prep pobj punct"
        .split(), pos="DET NOUN VERB ADP NOUN PUNCT".split(), lemmas=words,
    )  # fmt: skip
    chunks, _ = phrases.phrases_of(doc)
    assert chunks[0].expression == chunks[0].span == (0, 5)


def test_outer_punctuation_is_no_part_of_an_expression(parser) -> None:
    assert found("A dog in a field.", parser)["A dog"] == "A dog in a field"


def test_a_parser_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"'en_core_web_none' is not installed.*\[grit\]"):
        phrases.load_parser("en_core_web_none")
