"""Labels of patches, read off grounded batches by hand."""

from __future__ import annotations

import numpy as np

from kosmos2_jax.data import examples
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.grounding import Box, GroundedText, Kosmos2Vocabulary, Span
from kosmos2_jax.training.vision_warm_start import patch_labels


def test_patches_get_the_words_and_corners_of_their_phrase(tmp_path):
    train_sentencepiece(["a red star and two blue rings."] * 3, tmp_path / "m", 60)
    vocabulary = Kosmos2Vocabulary(tmp_path / "m", 4)
    first, second = Box(0.0, 0.0, 0.45, 0.45), Box(0.5, 0.5, 0.95, 0.7)
    caption = GroundedText("a red star.", (Span("a red star", 0, 10, (first, second)),))
    example = examples.caption_example(np.zeros((8, 8, 3), np.uint8), caption)
    ids = examples.encode_example(example, vocabulary, 2)["targets"][None]
    labels = patch_labels({"tokens": ids[:, :-1], "targets": ids[:, 1:]}, vocabulary, 4)

    corners = labels.corners.reshape(4, 4, 4)
    assert (corners[:2, :2] == (0, 0, 1, 1)).all()
    assert (corners[2, 2:] == (2, 2, 3, 2)).all()
    assert (corners != -1).any(axis=2).sum() == 6
    words = labels.words.reshape(4, 4, -1)
    assert set(np.flatnonzero(words[0, 0])) == set(vocabulary.encode("a red star"))
    assert not words[3].any()


def test_rows_without_phrases_have_no_labels(tmp_path):
    train_sentencepiece(["what is it"] * 3, tmp_path / "m", 40)
    vocabulary = Kosmos2Vocabulary(tmp_path / "m", 4)
    ids = np.array([[0, *vocabulary.encode("what is it"), 2]])
    labels = patch_labels({"tokens": ids[:, :-1], "targets": ids[:, 1:]}, vocabulary, 4)
    assert not labels.words.any()
    assert (labels.corners == -1).all()
