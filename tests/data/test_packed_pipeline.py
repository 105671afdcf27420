"""Packed batches out of real seqio tasks: repeatable, resumable to the bit, dealt without loss."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqio
import tensorflow as tf
from PIL import Image

from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packed_pipeline import Batch, PackedBatches, packed_batches
from kosmos2_jax.data.packing import SEQUENCES, RowLimits, pack
from kosmos2_jax.data.packing_converter import PackingFeatureConverter
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.data.streams import Share
from kosmos2_jax.errors import CheckpointError, ConfigError

SIZE, LATENTS, FILES = 8, 2, 16
LENGTH, IMAGES = 48, 5
TEXT, PAGES, MIXTURE = "packed_text", "packed_pages", "packed_mixture"
COUNTS = {TEXT: 180, PAGES: 260}
FIRST_ID = {TEXT: 10_000, PAGES: 20_000}  # the id after `<s>` tells examples apart
BROKEN, LONG, CROWDED = 7, 11, 13  # pages that are bad


def _picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (number % 256, number // 256, 77)).save(buffer, "PNG")
    return buffer.getvalue()


def _example(task: str, number: int) -> dict[str, Any]:
    pictures = 0 if task == TEXT else 9 if number == CROWDED else 1 + number % 3
    words = 60 if task == PAGES and number == LONG else 2 + number * 7 % 20
    first = FIRST_ID[task] + number
    ids, weights, slots = [0, first], [0.0, 0.0], [-1, -1]
    for picture in range(pictures):
        ids += [3] * LATENTS
        weights += [0.0] * LATENTS
        slots += range(picture * LATENTS, (picture + 1) * LATENTS)
    ids += [100 + k for k in range(words)] + [2]
    weights += [0.25 + k % 2 for k in range(words)] + [1.0]
    slots += [-1] * (words + 1)
    images = [_picture(3 * number + k) for k in range(pictures)]
    if task == PAGES and number == BROKEN:
        images[-1] = images[-1][:40]
    return {
        "targets": np.array(ids, np.int32),
        "loss_weights": np.array(weights, np.float32),
        "image_slots": np.array(slots, np.int32),
        "images": images,
    }


def _write(folder: Path, task: str) -> None:
    for file in range(FILES):
        name = folder / f"{task}-{file:05d}-of-{FILES:05d}.tfrecord"
        with tf.io.TFRecordWriter(str(name)) as writer:
            for number in range(file, COUNTS[task], FILES):
                example = _example(task, number)
                lists: dict[str, Any] = {
                    "targets": {"int64_list": tf.train.Int64List(value=example["targets"])},
                    "image_slots": {"int64_list": tf.train.Int64List(value=example["image_slots"])},
                    "loss_weights": {
                        "float_list": tf.train.FloatList(value=example["loss_weights"])
                    },
                    "images": {"bytes_list": tf.train.BytesList(value=example["images"])},
                }
                features = {key: tf.train.Feature(**value) for key, value in lists.items()}
                record = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(record.SerializeToString())


def _parse(dataset: tf.data.Dataset) -> tf.data.Dataset:
    def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        types = {
            "targets": tf.int64,
            "image_slots": tf.int64,
            "loss_weights": tf.float32,
            "images": tf.string,
        }
        spec = {name: tf.io.VarLenFeature(dtype) for name, dtype in types.items()}
        values = tf.io.parse_single_example(serialized, spec)
        dense = {name: tf.sparse.to_dense(value) for name, value in values.items()}
        ids = {name: tf.cast(dense[name], tf.int32) for name in ("targets", "image_slots")}
        return {**dense, **ids}

    return dataset.map(parse)


def register(folder: Path) -> None:
    features = {
        "targets": seqio.Feature(seqio.PassThroughVocabulary(30_000), add_eos=False),
        "loss_weights": seqio.ContinuousFeature(dtype=tf.float32, rank=1),
        "image_slots": seqio.ContinuousFeature(dtype=tf.int32, rank=1),
        "images": seqio.ContinuousFeature(dtype=tf.string, rank=1),
    }
    for task in COUNTS:
        seqio.TaskRegistry.add(
            task,
            source=seqio.FileDataSource(
                tf.data.TFRecordDataset,
                {"train": str(folder / f"{task}-*.tfrecord")},
                cycle_length=2,
                block_length=1,
            ),
            preprocessors=[_parse],
            output_features=features,
            shuffle_buffer_size=16,
        )
    seqio.MixtureRegistry.add(MIXTURE, [(TEXT, 1.0), (PAGES, 2.0)])


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    for task in COUNTS:
        _write(folder, task)
    register(folder)
    return folder


def _batches(name: str = MIXTURE, batch_size: int = 4, seed: int = 0, **more: Any) -> PackedBatches:
    settings = {"image_size": SIZE, "open_rows": 3, "num_streams": 2, **more}
    return packed_batches(name, feature_lengths(LENGTH, IMAGES), batch_size, seed, **settings)


def _take(batches: PackedBatches, count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def _assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert {n: v.tobytes() for n, v in a.items()} == {n: v.tobytes() for n, v in b.items()}
        assert {n: (v.shape, v.dtype) for n, v in a.items()} == {
            n: (v.shape, v.dtype) for n, v in b.items()
        }


def _ids(batches: Iterable[Batch]) -> Counter[int]:
    """The examples of batches, by the id after `<s>`."""
    found: Counter[int] = Counter()
    for batch in batches:
        starts = (batch["positions"] == 1) & (batch["segment_ids"] > 0)
        found.update(batch["tokens"][starts].tolist())
    return found


def _all_ids(*tasks: str) -> Counter[int]:
    """What an epoch holds: everything but what no row can hold."""
    numbers = {
        FIRST_ID[task] + number
        for task in tasks
        for number in range(COUNTS[task])
        if task == TEXT or number not in (LONG, CROWDED)
    }
    return Counter(numbers)


def test_batches_have_the_shapes_of_the_contract() -> None:
    batch = next(_batches())
    assert batch.pop("images").shape == (4, IMAGES, SIZE, SIZE, 3)
    assert {n: (v.shape, v.dtype) for n, v in batch.items()} == {
        name: ((4, LENGTH), np.dtype(dtype)) for name, dtype in SEQUENCES.items()
    }
    assert batch["segment_ids"].max(axis=1).min() > 1


def test_pictures_and_text_stay_together() -> None:
    checked = 0
    for batch in _batches(PAGES, num_epochs=1, image_mode="square"):
        for row, segments in enumerate(batch["segment_ids"]):
            for segment in range(1, segments.max() + 1):
                here = segments == segment
                number = batch["tokens"][row][here][1] - FIRST_ID[PAGES]
                slots = batch["image_slots"][row][here]
                shown = batch["images"][row][np.unique(slots[slots >= 0] // LATENTS)]
                names = 3 * number + np.arange(1 + number % 3)
                colours = np.stack([names % 256, names // 256, 0 * names + 77], axis=-1)
                assert len(shown) == len(colours)
                if number != BROKEN:
                    assert (shown == colours[:, None, None]).all()
                    checked += 1
    assert checked == COUNTS[PAGES] - 3


def test_rows_are_those_of_the_numpy_packer() -> None:
    """What TensorFlow carries along from window to window changes nothing."""
    lengths = feature_lengths(LENGTH, IMAGES)

    def mixed() -> tf.data.Dataset:
        """Anew each time: a second iteration would shuffle in another way."""
        mixture = seqio.get_mixture_or_task(MIXTURE)
        return mixture.get_dataset(None, "train", seed=3, num_epochs=2, trim_output_features=False)

    converter = PackingFeatureConverter(SIZE, pack=True, decode=False, open_rows=3)
    packed = list(converter(mixed(), lengths).as_numpy_iterator())
    limits = converter.row_limits(lengths)
    assert limits == RowLimits(LENGTH, IMAGES, open_rows=3)
    expected = list(pack(mixed().as_numpy_iterator(), limits))
    assert len(packed) == len(expected) > 128
    for ours, theirs in zip(packed, expected, strict=True):
        for name in (*SEQUENCES, "image_segments"):
            np.testing.assert_array_equal(ours[name], theirs[name])
        missing = IMAGES - len(theirs["images"])
        assert ours["images"].tolist() == [*theirs["images"], *[b""] * missing]
    assert packed[-1]["counts"].sum() == sum(1 for _ in mixed())


def test_one_seed_gives_one_order_whatever_the_threads() -> None:
    _assert_equal(_take(_batches(seed=5), 12), _take(_batches(seed=5, threads=3), 12))
    first, other = next(_batches(seed=5)), next(_batches(seed=6))
    assert not np.array_equal(first["tokens"], other["tokens"])


def _program(folder: Path, lines: str) -> str:
    """Python that does `lines` with this file as `test` and its tasks registered."""
    return f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_packed_pipeline as test
test.register(Path({str(folder)!r}))
{lines}"""


def _exit_status(program: str, patience: int = 600) -> int:
    """How a program ends; one that does not fails the test.

    It is waited for second by second, so that the time a machine spends paused, and the program
    with it, counts at most as one.
    """
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        for _ in range(patience):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=1)
        pytest.fail(f"the program has not ended after {patience} s")
    finally:
        process.kill()
        process.wait()


def test_resuming_at_random_steps_is_exact_to_the_byte(folder: Path, tmp_path: Path) -> None:
    """A process saves its place at 20 random steps and is killed hard; we go on from each."""
    steps = sorted(np.random.default_rng(0).choice(80, 20, replace=False).tolist())
    program = _program(
        folder,
        f"""
import os, signal
batches = test._batches()
for step in range({steps[-1] + 3}):
    if step in {steps}:
        Path({str(tmp_path)!r}, str(step)).write_bytes(batches.get_state())
    next(batches)
os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    assert _exit_status(program) == -signal.SIGKILL
    found = _take(_batches(), 90)
    assert _ids(found).total() > 1.5 * sum(COUNTS.values())
    resumed = _batches()
    for step in [steps[0], *reversed(steps)]:
        resumed.set_state((tmp_path / str(step)).read_bytes())
        _assert_equal(_take(resumed, 10), found[step : step + 10])


@pytest.mark.parametrize("num_shards", [2, 4, 8])
def test_every_shard_goes_on_to_the_byte(num_shards: int) -> None:
    """Also where several share a stream."""
    for shard in {1, num_shards - 1}:
        layout = {"num_shards": num_shards, "shard_id": shard, "batch_size": 2}
        straight, resumed = _batches(**layout), _batches(**layout)
        _take(straight, 1 + shard)
        resumed.set_state(straight.get_state())
        _assert_equal(_take(resumed, 6), _take(straight, 6))


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8])
def test_an_epoch_has_every_example_once(num_shards: int) -> None:
    """The last rows too, which are not full; of both tasks, which end at different times."""
    layout = {"num_streams": 8, "num_shards": num_shards}
    shards = [list(_batches(num_epochs=1, shard_id=k, **layout)) for k in range(num_shards)]
    assert all(shards)
    assert _ids(batch for batches in shards for batch in batches) == _all_ids(TEXT, PAGES)


@pytest.mark.parametrize(("num_shards", "num_streams"), [(5, 3), (3, 20)])
def test_any_number_of_shards_and_streams_will_do(num_shards: int, num_streams: int) -> None:
    """More shards than streams, more streams than files, and numbers that divide nothing."""
    layout = {"num_streams": num_streams, "num_shards": num_shards}
    shards = [_batches(TEXT, num_epochs=1, shard_id=k, **layout) for k in range(num_shards)]
    assert _ids(batch for batches in shards for batch in batches) == _all_ids(TEXT)


def test_all_shards_together_train_on_the_same_rows_whatever_their_number() -> None:
    def updates(num_shards: int) -> list[Counter[tuple[bytes, bytes]]]:
        shards = [
            _batches(batch_size=8 // num_shards, num_streams=4, shard_id=k, num_shards=num_shards)
            for k in range(num_shards)
        ]
        return [
            Counter(
                (row.tobytes(), pixels.tobytes())
                for batches in shards
                for batch in [next(batches)]
                for row, pixels in zip(batch["tokens"], batch["images"], strict=True)
            )
            for _ in range(6)
        ]

    alone = updates(1)
    assert updates(2) == updates(4) == updates(8) == alone


@pytest.mark.parametrize(("before", "after"), [(1, 4), (8, 2), (2, 8), (6, 1), (5, 3)])
def test_nothing_is_repeated_or_lost_on_another_number_of_shards(
    before: int, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The place of the whole is carried over exactly, buffers and all, and the log says so."""
    caplog.set_level(logging.INFO)
    settings = {"batch_size": 1, "num_streams": 4, "num_epochs": 1}
    found: list[Batch] = []
    first = [_batches(shard_id=k, num_shards=before, **settings) for k in range(before)]
    for _ in range(24 // before):
        found += [next(batches) for batches in first]
    states = [batches.get_state() for batches in first]
    counted = [batches.skips() for batches in first]
    second = [_batches(shard_id=k, num_shards=after, **settings) for k in range(after)]
    for batches in second:
        batches.set_state(*states)
    said = [text for text in caplog.messages if f"{before} former shards" in text]
    assert len(said) == after
    assert all("0 examples repeated, 0 lost" in text for text in said)
    carried = [batches.skips() for batches in second]
    assert sum(s.num_kept(MIXTURE) for s in carried) == sum(s.num_kept(MIXTURE) for s in counted)
    for batches in second:
        found += batches
    assert _ids(found) == _all_ids(TEXT, PAGES)
    skips = [batches.skips() for batches in second]
    assert sum(s.num_kept(MIXTURE) for s in skips) == len(_all_ids(TEXT, PAGES)) - 1
    assert sum(s.num_skipped(MIXTURE) for s in skips) == 3


def test_a_share_is_the_same_as_many_times_as_it_takes() -> None:
    assert Share.of(1, 3, 8) == Share((1, 4, 7))
    assert Share.of(5, 8, 3) == Share((2,), every=2, offset=1)
    assert Share.of(6, 8, 3) == Share((0,), every=3, offset=2)
    with pytest.raises(ConfigError, match="shard 2 of 2"):
        Share.of(2, 2, 8)


def test_other_places_are_refused() -> None:
    two = [_batches(shard_id=k, num_shards=2) for k in range(2)]
    states = [batches.get_state() for batches in two]
    with pytest.raises(CheckpointError, match=r"streams \[1\]"):
        _batches().set_state(states[0])
    with pytest.raises(CheckpointError, match="one of 2 streams, not of 4"):
        _batches(num_streams=4).set_state(*states)
    with pytest.raises(CheckpointError, match="damaged"):
        _batches().set_state(states[0][:-100])
    with pytest.raises(CheckpointError, match="other data"):
        _batches(TEXT, shard_id=0, num_shards=2).set_state(states[0])
    next(two[0])
    with pytest.raises(CheckpointError, match="one moment"):
        _batches().set_state(two[0].get_state(), states[1])


def test_what_is_skipped_and_blanked_is_counted() -> None:
    batches = _batches(PAGES, num_epochs=1)
    broken = FIRST_ID[PAGES] + BROKEN
    for batch in batches:
        for row in np.flatnonzero((batch["tokens"] == broken).any(axis=1)):
            segment = batch["segment_ids"][row][batch["tokens"][row] == broken]
            spoilt = batch["segment_ids"][row] == segment
            assert not batch["loss_weights"][row][spoilt].any()
            assert batch["loss_weights"][row][~spoilt].any()
    skips = batches.skips()
    assert skips.reasons(PAGES) == {
        "broken picture": 1,
        "longer than a row": 1,
        "more pictures than a row holds": 1,
    }
    assert skips.num_kept(PAGES) == COUNTS[PAGES] - 3
    skips.check()


def test_waiting_for_examples_that_never_fit_is_an_error() -> None:
    lengths = feature_lengths(2, IMAGES)
    batches = packed_batches(TEXT, lengths, 2, 0, image_size=SIZE, num_streams=1)
    with pytest.raises(DataError, match="None of the first .*longer than a row: .* raise"):
        next(batches)
    batches = packed_batches(TEXT, lengths, 2, 0, image_size=SIZE, num_streams=1, num_epochs=1)
    with pytest.raises(DataError, match="gives no examples"):
        next(batches)
    with pytest.raises(DataError, match="'validation'"):
        _batches(split="validation")


def test_one_example_a_row_never_skips() -> None:
    batches = _batches(TEXT, pack=False, num_epochs=1)
    found = list(batches)
    assert _ids(found) == _all_ids(TEXT)
    assert max(batch["segment_ids"].max() for batch in found) == 1
    assert batches.skips().num_kept(TEXT) == COUNTS[TEXT]
    with pytest.raises(ConfigError, match="raise the length"):
        list(_batches(PAGES, pack=False, num_epochs=1))


def test_a_last_batch_is_filled_up_with_rows_of_nothing() -> None:
    (last,) = _batches(TEXT, batch_size=200, num_epochs=1)
    assert last["tokens"].shape == (200, LENGTH)
    empty = last["segment_ids"].max(axis=1) == 0
    assert empty.any() and not last["loss_weights"][empty].any()
    assert (last["tokens"][empty] == 1).all() and (last["image_slots"][empty] == -1).all()


def test_closed_batches_end() -> None:
    batches = _batches()
    next(batches)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def _convert(
    rows: list[dict[str, Any]], lengths: Mapping[str, int], **settings: Any
) -> list[dict[str, np.ndarray]]:
    types = {"targets": tf.int32, "loss_weights": tf.float32, "image_slots": tf.int32}
    signature = {name: tf.TensorSpec([None], dtype) for name, dtype in types.items()}
    signature["images"] = tf.TensorSpec([None], tf.string)
    dataset = tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)
    converter = PackingFeatureConverter(SIZE, **settings)
    return list(converter(dataset, lengths).as_numpy_iterator())


def _row(ids: list[int], weights: list[float], images: list[bytes]) -> dict[str, Any]:
    slots = [-1, -1, 0, 1] + [-1] * (len(ids) - 4) if images else [-1] * len(ids)
    return {"targets": ids, "loss_weights": weights, "image_slots": slots, "images": images}


@pytest.mark.parametrize("pack", [False, True])
def test_golden_row(pack: bool) -> None:
    """Id 0 inside a sequence and fractional weights survive; seqio's own converters lose both."""
    row = _row([0, 7, 4, 5, 8, 0, 9, 2], [0, 0, 0, 0, 0, 0.5, 1, 0.25], [_picture(5)])
    (batch,) = _convert([row], feature_lengths(9, images=2), pack=pack)
    golden = {
        "tokens": [0, 7, 4, 5, 8, 0, 9, 1, 1],
        "targets": [7, 4, 5, 8, 0, 9, 2, 1, 1],
        "loss_weights": [0, 0, 0, 0, 0.5, 1, 0.25, 0, 0],
        "positions": [0, 1, 2, 3, 4, 5, 6, 0, 0],
        "segment_ids": [1, 1, 1, 1, 1, 1, 1, 0, 0],
        "image_slots": [-1, -1, 0, 1, -1, -1, -1, -1, -1],
    }
    assert {name: batch[name].tolist() for name in golden} == golden
    assert (batch["images"][0] == [5, 0, 77]).all() and not batch["images"][1].any()
    assert {name: value.dtype.name for name, value in batch.items()} == {
        **dict.fromkeys(golden, "int32"),
        "loss_weights": "float32",
        "images": "uint8",
    }


def test_a_row_that_is_just_full() -> None:
    row = _row([0, 7, 4, 5, 8, 2], [0, 0, 0, 0, 0, 1], [_picture(1)])
    (batch,) = _convert([row], feature_lengths(5))
    assert batch["tokens"].tolist() == [0, 7, 4, 5, 8]
    assert batch["targets"].tolist() == [7, 4, 5, 8, 2]
    assert batch["segment_ids"].tolist() == [1] * 5


@pytest.mark.parametrize("lengths", [feature_lengths(4), feature_lengths(9, images=0)])
def test_what_does_not_fit_a_row_of_its_own_is_an_error(lengths: dict[str, int]) -> None:
    row = _row([0, 7, 4, 5, 8, 2], [0, 0, 0, 0, 0, 1], [_picture(1)])
    with pytest.raises(tf.errors.InvalidArgumentError):
        _convert([row], lengths)


def test_pictures_decoded_inside_the_dataset_are_the_same() -> None:
    rows = [_example(PAGES, number) for number in range(60)]
    lengths = feature_lengths(LENGTH, IMAGES)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(rows),
        output_signature={
            "targets": tf.TensorSpec([None], tf.int32),
            "loss_weights": tf.TensorSpec([None], tf.float32),
            "image_slots": tf.TensorSpec([None], tf.int32),
            "images": tf.TensorSpec([None], tf.string),
        },
    )
    converter = PackingFeatureConverter(SIZE, pack=True, threads=2)
    found = list(converter(dataset, lengths).as_numpy_iterator())
    for row, expected in zip(found, pack(rows, converter.row_limits(lengths)), strict=True):
        for place, (encoded, segment) in enumerate(
            zip(expected["images"], expected["image_segments"], strict=False)
        ):
            if len(encoded) == 40:
                assert not row["images"][place].any()
                assert not row["loss_weights"][row["segment_ids"] == segment].any()
            else:
                pixels = np.asarray(Image.open(io.BytesIO(encoded)))
                np.testing.assert_array_equal(row["images"][place], pixels)
    assert converter.skips.reasons("pictures") == {"broken picture": 1}


def test_a_program_that_stops_while_data_are_read_ahead_ends(folder: Path) -> None:
    program = _program(folder, "next(test._batches())\nraise SystemExit(7)")
    assert _exit_status(program) == 7
