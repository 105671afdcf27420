"""From records on disk to the output features of a seqio task, and from model output to truth.

Preprocessors are thin: what an example is, `kosmos2_jax.data.examples` says.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from kosmos2_jax.data import records
from kosmos2_jax.data.examples import Example, encode_example
from kosmos2_jax.grounding.boxes import OFFICIAL
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

# (pixels uint8 [S, S, 3], annotation) -> the example, and what evaluation will ask for.
Build = Callable[[np.ndarray, dict[str, Any]], tuple[Example, dict[str, Any]]]

_SEQUENCES = {"targets": tf.int32, "loss_weights": tf.float32, "image_slots": tf.int32}
_RECORD = {name: tf.io.FixedLenFeature([], tf.string) for name in ("pixels", "annotation")}
_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """What of a model the data must know.

    Attributes:
      vocabulary: tokens and grid.
      num_latents: slots a picture takes.
      image_size: pixels a side.
      quantiser: how boxes become cells.
      word_weight: see `kosmos2_jax.data.examples.encode_example`.
    """

    vocabulary: Kosmos2Vocabulary
    num_latents: int
    image_size: int
    quantiser: str = OFFICIAL
    word_weight: float = 1.0


def record_source(folder: Path, splits: tuple[str, ...]) -> seqio.FileDataSource:
    """The data source over files of `kosmos2_jax.data.records`; its elements are raw records."""
    return seqio.FileDataSource(
        read_file_fn=tf.data.TFRecordDataset,
        split_to_filepattern={split: records.shard_pattern(folder, split) for split in splits},
        # Few files at a time: their shuffled order is what makes epochs differ.
        cycle_length=2,
        block_length=1,
    )


def encode_records(
    build: Build, inputs: ModelInputs
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A preprocessor: builds and encodes the example of each record.

    Besides the output features it leaves "truth", the JSON text of what `build` gives for
    evaluation, see `truth_of`.
    """
    size = inputs.image_size

    def encode(pixels: np.ndarray, annotations: Sequence[bytes]) -> tuple[np.ndarray, ...]:
        rows, truths = [], []
        for picture, annotation in zip(pixels, annotations, strict=True):
            example, truth = build(picture, json.loads(annotation))
            rows.append(
                encode_example(
                    example,
                    inputs.vocabulary,
                    inputs.num_latents,
                    inputs.quantiser,
                    inputs.word_weight,
                )
            )
            truths.append(json.dumps(truth))
        lengths = np.array([len(row["targets"]) for row in rows], np.int32)
        stacked = (_stack([row[name] for row in rows], lengths) for name in _SEQUENCES)
        return *stacked, lengths, np.array(truths, object)

    def preprocess(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        record = tf.io.parse_example(serialized, _RECORD)
        pixels = tf.io.decode_raw(tf.io.decode_compressed(record["pixels"], "ZLIB"), tf.uint8)
        pixels = tf.reshape(pixels, [-1, size, size, 3])
        # Stateless, or else the input pipeline could not be checkpointed.
        *sequences, lengths, truths = tf.numpy_function(
            encode,
            [pixels, record["annotation"]],
            [*_SEQUENCES.values(), tf.int32, tf.string],
            stateful=False,
        )
        chunk = dict(zip(_SEQUENCES, sequences, strict=True))
        chunk = {name: tf.ensure_shape(value, [None, None]) for name, value in chunk.items()}
        lengths, truths = tf.ensure_shape(lengths, [None]), tf.ensure_shape(truths, [None])
        return {**chunk, "images": pixels[:, None], "length": lengths, "truth": truths}

    def cut(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        length = features.pop("length")
        return {k: v[:length] if k in _SEQUENCES else v for k, v in features.items()}

    # A call into Python costs more than what is done there, hence many records at a time.
    return lambda ds: ds.batch(_CHUNK).map(preprocess).unbatch().map(cut)


def _stack(rows: list[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """Rows of different lengths as one array [rows, longest]."""
    stacked = np.zeros((len(rows), lengths.max()), rows[0].dtype)
    for row, values in zip(stacked, rows, strict=True):
        row[: len(values)] = values
    return stacked


def truth_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """What the builder of an example left for its evaluation."""
    return json.loads(example["truth"])
