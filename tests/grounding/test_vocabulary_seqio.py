"""The vocabulary inside seqio: TensorFlow twins of encode and decode, features and tasks."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

tf = pytest.importorskip("tensorflow")
seqio = pytest.importorskip("seqio")

TEXTS = ["a small red star.", "  two   circles\n", "", "été ☃ <phrase> x", "Question: why?"]


def test_encode_tf_is_encode(vocabulary: Kosmos2Vocabulary) -> None:
    for text in TEXTS:
        ids = vocabulary.encode_tf(tf.constant(text))
        assert ids.dtype == tf.int32
        assert ids.numpy().tolist() == vocabulary.encode(text), text


def test_decode_tf_is_decode(vocabulary: Kosmos2Vocabulary) -> None:
    rng = random.Random(3)
    rows = [[rng.randrange(-1, 65040) for _ in range(12)] for _ in range(40)]
    rows += [[0, 10, 43867, 2, 10, 646, 2, 1, 1, 1, 1, 1], [0] * 12]
    texts = vocabulary.decode_tf(tf.constant(rows, tf.int32)).numpy()
    assert [text.decode() for text in texts] == [vocabulary.decode(row) for row in rows]
    assert vocabulary.decode_tf(tf.constant(rows[-2], tf.int32)).numpy() == b"a snowman"
    assert vocabulary.decode(tf.constant(rows[-2], tf.int32)) == "a snowman"


@pytest.mark.parametrize("grid", [0, 8])
def test_task(small_vocabulary: Callable[[int], Kosmos2Vocabulary], grid: int) -> None:
    vocabulary = small_vocabulary(grid)
    texts = ["a red star", "two blue circles."]
    task = seqio.Task(
        f"grounding_vocabulary_{grid}",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
                {"targets": texts}
            ),
            splits=("train",),
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": seqio.Feature(vocabulary=vocabulary)},
    )
    dataset = task.get_dataset({"targets": 64}, "train", shuffle=False)
    rows = [row["targets"].tolist() for row in dataset.as_numpy_iterator()]
    assert rows == [[*vocabulary.encode(text), vocabulary.eos_id] for text in texts]
    assert [vocabulary.decode(row) for row in rows] == texts


def test_features_of_equal_vocabularies_are_equal(
    small_vocabulary: Callable[[int], Kosmos2Vocabulary],
) -> None:
    v = small_vocabulary(8)
    same = Kosmos2Vocabulary(v.model_file, 8)
    assert seqio.Feature(vocabulary=v) == seqio.Feature(vocabulary=same)
    assert seqio.Feature(vocabulary=v) != seqio.Feature(vocabulary=small_vocabulary(16))
    assert v.extra_ids == 0
