"""What a seqio task hands to the feature converter, for every kind of data alike."""

from __future__ import annotations

from collections.abc import Mapping

import seqio
import tensorflow as tf

from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

# A feature that tasks may have besides, tf.string []: what predictions of an example are saved
# under. Without it that is the example's place.
EXAMPLE_ID = "id"
# Another one, tf.string []: a digest of what the model is asked, pictures included, by which saved
# predictions are known to be of this very question.
QUESTION = "question"


def output_features(vocabulary: Kosmos2Vocabulary) -> Mapping[str, seqio.Feature]:
    """The output features of every task; see `kosmos2_jax.data.examples.encode_example`.

    Token ids are called "targets" because seqio's evaluator decodes the feature of that name.
    """
    return {
        "targets": seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32),
        "loss_weights": seqio.ContinuousFeature(dtype=tf.float32, rank=1),
        "image_slots": seqio.ContinuousFeature(dtype=tf.int32, rank=1),
        # Encoded, as they are until the very last.
        "images": seqio.ContinuousFeature(dtype=tf.string, rank=1),
    }


def feature_lengths(length: int, images: int = 1) -> dict[str, int]:
    """seqio's `task_feature_lengths` for model inputs of `length` tokens and so many pictures.

    A sequence has one token more than the model reads, because inputs and targets are the same
    sequence shifted by one.
    """
    return {
        "targets": length + 1,
        "loss_weights": length + 1,
        "image_slots": length + 1,
        "images": images,
    }
