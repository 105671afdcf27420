"""From the features of a task to the rows the model reads, packed or one example a row."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from kosmos2_jax.data.grit import SQUARE
from kosmos2_jax.data.packing import SEQUENCES, SKIP_REASONS, TEXT_SLOT, Packer, Row, RowLimits
from kosmos2_jax.data.pictures import BROKEN, decode_row
from kosmos2_jax.data.skips import DataError, Skips

_Spec = seqio.FeatureConverter.FeatureSpec
_Features = Mapping[str, tf.Tensor]

# A feature that tasks may have beside those below, tf.string []: what is known of an example. It
# travels with it through packing, see `kosmos2_jax.data.streams`.
NOTE = "note"

# Examples that are handed to Python at a time: a call costs as much as packing a dozen of them.
_WINDOW = 32
# After so many examples of which none fitted into a row, waiting on would be waiting for ever.
_HOPELESS = 1000

_ROW_TYPES = {name: tf.as_dtype(dtype) for name, dtype in SEQUENCES.items()}
# Examples laid one behind the other; of pictures only how many each has.
_FLAT_TYPES = {
    "targets": tf.int32,
    "loss_weights": tf.float32,
    "image_slots": tf.int32,
    "note": tf.string,
    "lengths": tf.int64,
    "pictures": tf.int64,
}
# Of these, what has one value for each token, not for each example.
_NUM_SEQUENCES = 3


class PackingFeatureConverter(seqio.FeatureConverter):
    """Shifts by one, lays examples into rows of fixed shape, and decodes pictures last.

    Never asks whether an id is 0, as seqio's own converters do: 0 is `<s>` here, and weights are
    fractions.

    Packed, examples share rows as `kosmos2_jax.data.packing.Packer` says, which carries its open
    rows along as the state of `tf.data.Dataset.scan`. That state is saved with the iterator, so
    that resuming is exact. Packing windows of examples on their own would need no state, but rows
    then stay open at the end of each: on lengths like the papers' 128 examples at a time are
    filled to 93%, 512 to 97%, and 16 rows carried along to 98.6%.

    Model features (L = length of "targets" - 1, N = length of "images"):
      tokens, targets int32 [L]: inputs and what follows each of them.
      loss_weights float32 [L]: weight of predicting `targets`.
      positions int32 [L]: place within the example, from 0.
      segment_ids int32 [L]: number of the example in its row from 1, 0 for padding.
      image_slots int32 [L]: picture of the row * num_latents + slot, -1 at text.
      images uint8 [N, S, S, 3]: pictures in reading order, missing ones black.
    Not decoded, `images` are tf.string [N], "" where missing, and there are besides:
      image_segments int32 [N]: segment of each picture, 0 where missing.
      counts int64 [1 + len(SKIP_REASONS)]: examples packed when this row left, and those skipped
        by reason, all since the beginning of the data.
      notes tf.string []: the feature `NOTE` of the row's examples, if they have it, one a line.

    Attributes:
      skips: what decoding here found, under the source "pictures".
    """

    TASK_FEATURES = {
        "targets": _Spec(dtype=tf.int32),
        "loss_weights": _Spec(dtype=tf.float32),
        "image_slots": _Spec(dtype=tf.int32),
        "images": _Spec(dtype=tf.string),
    }
    MODEL_FEATURES = {
        **{name: _Spec(dtype=dtype) for name, dtype in _ROW_TYPES.items()},
        "images": _Spec(dtype=tf.uint8, rank=4),
    }
    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def __init__(
        self,
        image_size: int,
        pad_id: int = 1,
        *,
        pack: bool = False,
        decode: bool = True,
        image_mode: str = SQUARE,
        open_rows: int = 4,
        threads: int = 1,
        keep: Mapping[str, tf.DType] = MappingProxyType({}),
    ) -> None:
        """Creates a converter.

        Args:
          image_size: S, pixels a side.
          pad_id: id at places that hold nothing; they have no weight and no segment.
          pack: whether examples share rows. What does not fit into a row is skipped and counted;
            one example a row, as evaluation needs it, it is an error of tf.data instead.
          decode: whether pictures become pixels, or stay encoded for
            `kosmos2_jax.data.pictures.decode_row`.
          image_mode: see `kosmos2_jax.data.pictures.decode_picture`; that of inference (spec 3.2).
          open_rows: see `kosmos2_jax.data.packing.RowLimits`.
          threads: that decode pictures; the order of rows does not depend on it.
          keep: types of features that tasks have besides, one value each, which rows keep. Only for
            one example a row.
        """
        # The base class refuses to pack anything but sequences, and its length checks cost more
        # than all the rest.
        super().__init__(pack=False, apply_length_check=False)
        self.skips = Skips()
        self._image_size = image_size
        self._pad_id = pad_id
        self._packs = pack
        self._decodes = decode
        self._image_mode = image_mode
        self._open_rows = open_rows
        self._threads = threads
        self._keep = tuple(keep)
        self.MODEL_FEATURES = {
            **self.MODEL_FEATURES,
            **{name: _Spec(dtype=dtype, rank=0) for name, dtype in keep.items()},
        }
        if not decode:
            self.MODEL_FEATURES = {
                **self.MODEL_FEATURES,
                "images": _Spec(dtype=tf.string),
                "image_segments": _Spec(dtype=tf.int32),
                "counts": _Spec(dtype=tf.int64),
                "notes": _Spec(dtype=tf.string, rank=0),
            }

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        limits = self.row_limits(task_feature_lengths)
        ds = _packed(ds, limits) if self._packs else _one_a_row(ds, limits, self._keep)
        if not self._decodes:
            return ds
        if self._threads == 1:
            return ds.map(self._decode)
        return ds.map(self._decode, num_parallel_calls=self._threads, deterministic=True)

    def row_limits(self, task_feature_lengths: Mapping[str, int]) -> RowLimits:
        """What a row of these lengths holds.

        Raises:
          ConfigError: a length makes no sense.
        """
        return RowLimits(
            length=task_feature_lengths["targets"] - 1,
            images=task_feature_lengths["images"],
            pad_id=self._pad_id,
            open_rows=self._open_rows,
        )

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Lengths of the model features, see the class."""
        images = task_feature_lengths["images"]
        lengths = dict.fromkeys(self.MODEL_FEATURES, task_feature_lengths["targets"] - 1)
        others = {"images": images, "image_segments": images, "counts": 1 + len(SKIP_REASONS)}
        return {**lengths, **{name: others[name] for name in lengths.keys() & others.keys()}}

    def _decode(self, row: _Features) -> dict[str, tf.Tensor]:
        shape = [row["images"].shape[0], self._image_size, self._image_size, 3]

        names = ("images", "image_segments", "segment_ids", "loss_weights")

        def decode(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            # TensorFlow owns what it hands over.
            arrays_of = {name: array.copy() for name, array in zip(names, arrays, strict=True)}
            pixels = np.zeros(shape, np.uint8)
            if broken := decode_row(arrays_of, pixels, self._image_mode):
                self.skips.count("pictures", BROKEN, broken)
            return arrays_of["loss_weights"], pixels

        weights, pixels = tf.numpy_function(
            decode, [row[name] for name in names], [tf.float32, tf.uint8], stateful=False
        )
        decoded = {name: row[name] for name in (*_ROW_TYPES, *self._keep)}
        decoded["loss_weights"] = tf.ensure_shape(weights, row["loss_weights"].shape)
        return {**decoded, "images": tf.ensure_shape(pixels, shape)}


def _one_a_row(ds: tf.data.Dataset, limits: RowLimits, keep: Sequence[str]) -> tf.data.Dataset:
    def convert(features: _Features) -> dict[str, tf.Tensor]:
        ids, images = features["targets"], features["images"]
        size = tf.size(ids) - 1

        def pad(values: tf.Tensor, filler: int | str, length: int = limits.length) -> tf.Tensor:
            padded = tf.pad(values, [[0, length - tf.size(values)]], constant_values=filler)
            return tf.ensure_shape(padded, [length])

        return {
            "tokens": pad(ids[:-1], limits.pad_id),
            "targets": pad(ids[1:], limits.pad_id),
            "loss_weights": pad(features["loss_weights"][1:], 0),
            "positions": pad(tf.range(size), 0),
            "segment_ids": pad(tf.ones([size], tf.int32), 0),
            "image_slots": pad(features["image_slots"][:-1], TEXT_SLOT),
            "images": pad(images, "", limits.images),
            "image_segments": pad(tf.ones_like(images, tf.int32), 0, limits.images),
            "counts": tf.constant([1] + [0] * len(SKIP_REASONS), tf.int64),
            "notes": features.get(NOTE, tf.constant("")),
            **{name: features[name] for name in keep},
        }

    return ds.map(convert)


def _packed(ds: tf.data.Dataset, limits: RowLimits) -> tf.data.Dataset:
    names = PackingFeatureConverter.TASK_FEATURES.keys()

    def choose(features: _Features) -> dict[str, tf.Tensor]:
        note = features.get(NOTE, tf.constant(""))
        return {**{name: features[name] for name in names}, NOTE: note}

    if ds.element_spec.keys() != {*names, NOTE}:
        ds = ds.map(choose)
    windows = ds.ragged_batch(_WINDOW).map(_flatten)
    # A last window without examples says that the open rows are to go.
    windows = windows.concatenate(tf.data.Dataset.from_tensors({**_nothing(), "end": True}))
    state = {
        **_nothing(),
        "rows": tf.zeros([0], tf.int32),
        "counts": tf.zeros([1 + len(SKIP_REASONS)], tf.int64),
    }
    return windows.scan(state, functools.partial(_step, limits)).unbatch()


def _nothing() -> dict[str, tf.Tensor]:
    flat = {name: tf.zeros([0], dtype) for name, dtype in _FLAT_TYPES.items()}
    return {**flat, "images": tf.zeros([0], tf.string)}


def _flatten(window: Mapping[str, tf.RaggedTensor]) -> dict[str, Any]:
    return {
        **{name: window[name].flat_values for name in PackingFeatureConverter.TASK_FEATURES},
        NOTE: window[NOTE],
        "lengths": window["targets"].row_lengths(),
        "pictures": window["images"].row_lengths(),
        "end": False,
    }


def _step(limits: RowLimits, state: _Features, window: _Features) -> tuple[_Features, _Features]:
    """One step of the scan: (open rows, window of examples) to (open rows, rows that leave)."""
    # One more that is empty, for places without a picture.
    images = tf.concat([state["images"], window["images"], [""]], axis=0)
    flat = [part[name] for part in (state, window) for name in _FLAT_TYPES]
    outputs = tf.numpy_function(
        functools.partial(_pack_window, limits),
        [window["end"], state["counts"], state["rows"], *flat],
        # What leaves: sequences, image_segments, counts, notes, numbers of the pictures. What
        # stays: flat examples, their rows, numbers of the pictures, counts.
        [*_ROW_TYPES.values(), tf.int32, tf.int64, tf.string, tf.int32]
        + [*_FLAT_TYPES.values(), tf.int32, tf.int32, tf.int64],
        # Stateless, or else the input pipeline could not be checkpointed.
        stateful=False,
    )
    (*sequences, segments, row_counts, notes, pictures), outputs = outputs[:10], outputs[10:]
    (*flat, rows, kept, counts) = (tf.ensure_shape(part, [None]) for part in outputs)
    leaving = {
        name: tf.ensure_shape(values, [None, limits.length])
        for name, values in zip(_ROW_TYPES, sequences, strict=True)
    }
    pictures = tf.ensure_shape(pictures, [None, limits.images])
    staying = dict(zip(_FLAT_TYPES, flat, strict=True))
    return {
        **staying,
        "images": tf.gather(images, kept),
        "rows": rows,
        "counts": tf.ensure_shape(counts, state["counts"].shape),
    }, {
        **leaving,
        "images": tf.gather(images, pictures),
        "image_segments": tf.ensure_shape(segments, [None, limits.images]),
        "counts": tf.ensure_shape(row_counts, [None, *state["counts"].shape]),
        "notes": tf.ensure_shape(notes, [None]),
    }


def _pack_window(
    limits: RowLimits, end: np.ndarray, counts: np.ndarray, rows: np.ndarray, *flat: np.ndarray
) -> list[np.ndarray]:
    """What `_step` does but for the pictures themselves; see there for what it returns."""
    state, window = flat[: len(_FLAT_TYPES)], flat[len(_FLAT_TYPES) :]
    pictures = int(state[-1].sum())
    everywhere = pictures + int(window[-1].sum())
    packer = Packer(limits, _by_row(_split(state, 0), rows), counts)
    done: list[Row] = []
    for example in _split(window, pictures):
        left = packer.add(example)
        done += [{**row, "counts": packer.counts.copy()} for row in left]
    if end:
        done += [{**row, "counts": packer.counts} for row in packer.flush()]
    if not packer.counts[0] and packer.counts.sum() >= _HOPELESS:
        raise DataError(_hopeless(packer.counts))
    numbers = np.full([len(done), limits.images], everywhere, np.int32)
    for row_numbers, row in zip(numbers, done, strict=True):
        row_numbers[: len(row["images"])] = row["images"]
    shapes = dict.fromkeys(_ROW_TYPES, limits.length) | {"image_segments": limits.images}
    shapes["counts"] = len(counts)
    types = {**_ROW_TYPES, "image_segments": tf.int32, "counts": tf.int64}
    leaving = [
        np.array([row[name] for row in done], types[name].as_numpy_dtype).reshape(-1, width)
        for name, width in shapes.items()
    ]
    notes = [b"\n".join(row["notes"]) for row in done]
    return [*leaving, np.array(notes, object), numbers, *_join(packer), packer.counts]


def _split(flat: Sequence[np.ndarray], first_picture: int) -> list[dict[str, Any]]:
    """Examples that lie one behind the other; `images` are the pictures' numbers."""
    *sequences, notes, lengths, pictures = flat
    edges = itertools.pairwise([0, *np.cumsum(lengths).tolist()])
    numbers = itertools.pairwise([first_picture, *(first_picture + np.cumsum(pictures)).tolist()])
    names = list(_FLAT_TYPES)[:_NUM_SEQUENCES]
    return [
        {
            **{name: values[a:b] for name, values in zip(names, sequences, strict=True)},
            "images": range(first, last),
            "note": note,
        }
        for (a, b), (first, last), note in zip(edges, numbers, notes, strict=True)
    ]


def _by_row(examples: Sequence[Row], rows: np.ndarray) -> list[list[Row]]:
    grouped: list[list[Row]] = [[] for _ in range(int(rows.max(initial=-1)) + 1)]
    for example, row in zip(examples, rows, strict=True):
        grouped[row].append(example)
    return grouped


def _join(packer: Packer) -> list[np.ndarray]:
    """The open rows: flat examples, the row of each, numbers of the pictures."""
    examples = [example for row in packer.open for example in row]
    rows = [number for number, row in enumerate(packer.open) for _ in row]
    sequences = [
        np.concatenate([np.zeros(0, dtype.as_numpy_dtype), *(e[name] for e in examples)])
        for name, dtype in list(_FLAT_TYPES.items())[:_NUM_SEQUENCES]
    ]
    notes = np.array([example["note"] for example in examples], object)
    lengths = np.array([len(example["targets"]) for example in examples], np.int64)
    pictures = np.array([len(example["images"]) for example in examples], np.int64)
    kept = np.array([number for e in examples for number in e["images"]], np.int32)
    return [*sequences, notes, lengths, pictures, np.array(rows, np.int32), kept]


def _hopeless(counts: np.ndarray) -> str:
    reasons = zip(SKIP_REASONS, counts[1:].tolist(), strict=True)
    return (
        f"None of the first {counts.sum():,} examples fits into a row ("
        + ", ".join(f"{reason}: {count:,}" for reason, count in reasons if count)
        + "): raise the length of rows or their number of pictures."
    )
