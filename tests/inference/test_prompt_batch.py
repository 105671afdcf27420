"""Prompts: ids of the reference, slots of several pictures, padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding import Kosmos2Vocabulary, prompts
from kosmos2_jax.inference.prompt_batch import (
    Prompt,
    batch_prompts,
    bucket_length,
    build_prompt,
)

PICTURE = np.zeros((4, 4, 3), np.uint8)


def test_golden_ids_of_the_brief_caption(assets: Path):
    vocabulary = Kosmos2Vocabulary(assets / "tokenizer" / "sentencepiece.bpe.model")
    prompt = build_prompt(vocabulary, 64, [PICTURE, prompts.describe()])
    assert prompt.ids.tolist() == [0, 64003, *range(4, 68), 64004, 64012, 712, 1648, 9]
    assert prompt.image_slots.tolist() == [-1, -1, *range(64), *[-1] * 5]
    assert len(prompt.images) == 1


def test_several_pictures_count_on(small_vocabulary: Kosmos2Vocabulary):
    first, second = PICTURE, PICTURE + 1
    prompt = build_prompt(small_vocabulary, 3, [first, "a red star", second, "is"])
    places = np.flatnonzero(prompt.image_slots >= 0)
    assert prompt.image_slots[places].tolist() == [0, 1, 2, 3, 4, 5]
    assert prompt.ids[places].tolist() == [4, 5, 6, 4, 5, 6]
    assert (prompt.ids[places[[0, 3]] - 1] == small_vocabulary.begin_image_id).all()
    assert (prompt.ids[places[[2, 5]] + 1] == small_vocabulary.end_image_id).all()
    assert [image.max() for image in prompt.images] == [0, 1]


def test_padding_is_on_the_right_and_missing_pictures_are_black():
    rows = [
        Prompt(np.arange(5, dtype=np.int32), np.full(5, -1, np.int32), ()),
        Prompt(np.arange(70, dtype=np.int32), np.zeros(70, np.int32), (PICTURE + 9,)),
    ]
    batch = batch_prompts(rows, max_length=100)
    assert batch.tokens.shape == (2, 72) and batch.lengths.tolist() == [5, 70]
    assert (batch.tokens[0, 5:] == 1).all() and (batch.image_slots[0] == -1).all()
    assert batch.images.shape == (2, 1, 4, 4, 3)
    assert batch.images[0].max() == 0 and batch.images[1].min() == 9
    assert batch_prompts(rows[:1], max_length=100).images is None


def test_a_prompt_that_is_too_long_is_refused():
    row = Prompt(np.zeros(70, np.int32), np.full(70, -1, np.int32), ())
    with pytest.raises(MarkupError, match="70 tokens.* at most 69: shorten it"):
        batch_prompts([row], max_length=69)


def test_buckets():
    lengths = (1, 64, 65, 72, 73, 81, 128, 129, 160, 256, 257, 321)
    padded = [64, 64, 72, 72, 80, 96, 128, 160, 160, 256, 320, 384]
    assert [bucket_length(n) for n in lengths] == padded


def test_tags_of_another_vocabulary_are_refused(small_vocabulary: Kosmos2Vocabulary):
    with pytest.raises(MarkupError, match="patch_index_0999"):
        build_prompt(small_vocabulary, 3, ["<object><patch_index_0999>"])
