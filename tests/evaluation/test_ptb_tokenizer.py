"""Our tokens beside those that Java's PTB tokenizer gave on the same captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kosmos2_jax.evaluation import coco_java
from kosmos2_jax.evaluation.ptb_tokenizer import tokenize

GOLDEN = Path(__file__).parent / "golden" / "ptb_tokens.jsonl"

needs_java = pytest.mark.skipif(not coco_java.is_available(), reason="no Java or pycocoevalcap")


@pytest.fixture(scope="module")
def recorded() -> list[tuple[str, list[str]]]:
    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    return [(caption, tokens.split()) for caption, tokens in map(json.loads, lines)]


def test_tokens_are_those_of_java(recorded):
    assert len(recorded) == 1500
    different = [caption for caption, tokens in recorded if tokenize(caption) != tokens]
    # All of ours, ordinary and odd; 99.7% is what is promised for text that we have not seen.
    assert not different


@needs_java
def test_adapter_gives_what_the_package_gives(recorded):
    captions, tokens = zip(*recorded, strict=True)
    assert coco_java.tokenize(captions) == list(tokens)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("", []),
        (" . ", []),
        ("line\nbreak\u2028and\ttab", ["line", "break", "and", "tab"]),
        ("(a)", ["-lrb-", "a", "-rrb-"]),  # as COCO's evaluation, which misses them
        ("a\u00a0b", ["a", "b"]),
        ("\U0001f600", []),
    ],
)
def test_edges(caption, tokens):
    assert tokenize(caption) == tokens
