"""The small sentencepiece model of the quickstart."""

from __future__ import annotations

from pathlib import Path

import pytest

from kosmos2_jax.data import easy_vqa_records, sprites
from kosmos2_jax.data.scene_language import COUNTS, EXTREMES, PLURALS, RELATIONS
from kosmos2_jax.data.scenes import SIZES
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary


def test_training_twice_gives_the_same_file(tmp_path: Path) -> None:
    text = [f"the {word} of an image" for word in ("star", "ring", "cross")] * 20
    first, second = tmp_path / "a.model", tmp_path / "new" / "b.model"
    train_sentencepiece(text, first, 60)
    train_sentencepiece(iter(text), second, 60)
    assert first.read_bytes() == second.read_bytes()


def test_every_word_of_the_quickstart_is_one_piece(vocabulary: Kosmos2Vocabulary) -> None:
    pieces = vocabulary.tokenizer
    assert pieces.vocab_size() <= 200
    said = [*easy_vqa_records.sentences(), "An image of the and", *RELATIONS, *COUNTS[1:5]]
    said += [*sprites.COLORS, *sprites.SHAPES, *sprites.TEXTURES, *SIZES, *EXTREMES]
    said += PLURALS.values()
    words = {word.strip(".,?:") for line in said for word in line.split()}
    assert {"red", "crosses", "bottommost", "rectangle", "gray", "Question"} < words
    for word in words:
        assert pieces.encode_as_pieces(word) == ["▁" + word]


def test_layout_is_that_of_the_released_model(vocabulary: Kosmos2Vocabulary) -> None:
    pieces = vocabulary.tokenizer
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id(), pieces.pad_id()) == (0, 1, 2, -1)
    # nmt_nfkc: compatibility characters, white space of any kind, ends stripped.
    assert vocabulary.encode("  ａ\tred   star\n") == vocabulary.encode("a red star")


def test_too_few_pieces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 pieces"):
        train_sentencepiece(["the red star"] * 9, tmp_path / "x.model", 3)
    assert not (tmp_path / "x.model").exists()


def test_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        train_sentencepiece([], tmp_path / "x.model", 30)
