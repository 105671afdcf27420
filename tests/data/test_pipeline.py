"""Training batches: repeatable, resumable to the bit, shared out without loss."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import seqio

from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.pipeline import Batch, TrainBatches, train_batches
from kosmos2_jax.data.preprocessing import ModelInputs
from kosmos2_jax.errors import CheckpointError, ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.model import prompts_of
from kosmos2_jax.tasks import scenes

MIXTURE = "test_pipeline_mixture"


@pytest.fixture(scope="module", autouse=True)
def _registered(data_dir: Path, vocabulary: Kosmos2Vocabulary) -> None:
    names = scenes.register(data_dir, ModelInputs(vocabulary, 4, 64))
    seqio.MixtureRegistry.add(MIXTURE, [(name, float(k + 1)) for k, name in enumerate(names)])


def _batches(seed: int = 0, length: int = 72, **settings: int) -> TrainBatches:
    return train_batches(MIXTURE, feature_lengths(length), 8, seed, image_size=64, **settings)


def _assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def _take(batches: TrainBatches, count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def test_batches_have_the_shapes_of_the_contract() -> None:
    batch = next(_batches())
    assert batch.pop("images").shape == (8, 1, 64, 64, 3)
    assert {value.shape for value in batch.values()} == {(8, 72)}
    assert set(batch) == {
        "tokens",
        "targets",
        "loss_weights",
        "positions",
        "segment_ids",
        "image_slots",
    }
    np.testing.assert_array_equal(np.sort(batch["image_slots"].max(axis=1)), [3] * 8)


def test_one_seed_gives_one_order() -> None:
    _assert_equal(_take(_batches(5), 12), _take(_batches(5), 12))
    first, other = next(_batches(5)), next(_batches(6))
    assert not np.array_equal(first["tokens"], other["tokens"])


def test_reading_threads_do_not_change_the_order() -> None:
    _assert_equal(_take(_batches(), 12), _take(_batches(threads=4), 12))


def test_resuming_is_exact_also_beyond_an_epoch() -> None:
    batches = _batches()
    _take(batches, 30)
    state = batches.get_state()
    ahead = _take(batches, 60)  # 320 scenes a task: several epochs of the busiest
    resumed = _batches()
    _take(resumed, 3)
    resumed.set_state(state)
    _assert_equal(_take(resumed, 60), ahead)


def test_the_state_of_another_shard_is_refused() -> None:
    state = _batches().get_state()
    with pytest.raises(CheckpointError, match="shard-1-of-2"):
        _batches(shard_id=1, num_shards=2).set_state(state)
    with pytest.raises(CheckpointError, match="damaged"):
        _batches().set_state(state[:-100])


@pytest.mark.parametrize("num_shards", [1, 3, 16, 20])
def test_shards_are_disjoint_and_complete(num_shards: int) -> None:
    """16 files: fewer shards than files, as many, and more."""
    task = seqio.get_mixture_or_task(scenes.REC)
    seen: Counter[bytes] = Counter()
    for shard in range(num_shards):
        dataset = task.get_dataset(
            None, "train", shuffle=False, shard_info=seqio.ShardInfo(shard, num_shards)
        )
        pictures = [row["images"].tobytes() for row in dataset.as_numpy_iterator()]
        assert pictures
        seen.update(pictures)
    assert len(seen) == 320
    assert set(seen.values()) == {1}


def test_shards_of_training_batches_differ() -> None:
    first, second = (next(_batches(shard_id=k, num_shards=2)) for k in range(2))
    assert not {p.tobytes() for p in first["images"]} & {p.tobytes() for p in second["images"]}


def test_an_example_that_does_not_fit_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="raise the length"):
        _take(_batches(length=20), 5)


def test_closed_batches_end() -> None:
    batches = _batches()
    next(batches)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def test_prompts_end_before_the_first_learnt_token(vocabulary: Kosmos2Vocabulary) -> None:
    batches = train_batches(scenes.REC, feature_lengths(60), 8, 0, image_size=64)
    batch = next(batches)
    for row, length in enumerate(prompts_of(batch).lengths):
        assert batch["tokens"][row, length - 1] == vocabulary.end_phrase_id
        assert batch["targets"][row, length - 1] == vocabulary.object_id
        assert batch["loss_weights"][row, : length - 1].sum() == 0


def test_a_program_that_stops_while_data_are_read_ahead_ends(
    data_dir: Path, vocabulary: Kosmos2Vocabulary
) -> None:
    program = f"""
from pathlib import Path
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.pipeline import train_batches
from kosmos2_jax.data.preprocessing import ModelInputs
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.tasks import scenes
inputs = ModelInputs(Kosmos2Vocabulary({str(vocabulary.model_file)!r}, 8), 4, 64)
scenes.register(Path({str(data_dir)!r}), inputs)
batches = train_batches(scenes.REFERRING, feature_lengths(90), 4, 0, image_size=64)
next(batches)
raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 7
