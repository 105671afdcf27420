"""seqio tasks over prepared documents: their files, their encoding, and what is skipped."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from kosmos2_jax.data.documents import Document, from_tf_example
from kosmos2_jax.data.encode_document import EncodeSettings, Features, encode_document
from kosmos2_jax.data.examples import Example, encode_example
from kosmos2_jax.data.features import output_features
from kosmos2_jax.data.packing_converter import NOTE
from kosmos2_jax.data.skips import DataError, Skips
from kosmos2_jax.data.streams import write_note
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

# What evaluation asks for, beside the output features: JSON, see `truth_of`.
TRUTH = "truth"

# A record that stands behind the last one of each pass over the files.
_END_OF_PASS = b""
# After so many documents of which none gave an example, going on would be going on for ever.
_HOPELESS = 1000

_SEQUENCES = {"targets": tf.int32, "loss_weights": tf.float32, "image_slots": tf.int32}
_SHARD = re.compile(r"-of-(\d+)\.tfrecord$")


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """What all tasks of a run share.

    Attributes:
      vocabulary: tokens and grid.
      encode: how documents become examples.
      seed: of all that is left to chance in encoding; it also follows from the document and from
        how often it was read, so that epochs differ and runs repeat (trap T-47).
      shuffle_buffer: examples that are shuffled at a time.
    """

    vocabulary: Kosmos2Vocabulary
    encode: EncodeSettings = EncodeSettings()
    seed: int = 0
    shuffle_buffer: int = 256


# (documents, each with the number of the pass that reads it; settings, cut to what a row holds;
# counter) -> features of `kosmos2_jax.data.examples.encode_example`, and "truth" where there is
# something to be evaluated.
Documents = Iterable[tuple[Document, int]]
Encode = Callable[[Documents, TaskSettings, Skips], Iterable[Features]]


def encode_each(documents: Documents, settings: TaskSettings, skips: Skips) -> Iterator[Features]:
    """Encodes documents one by one, see `encode_document`."""
    for document, number in documents:
        yield from encode_document(
            document, settings.vocabulary, settings.encode, settings.seed, skips, number
        )


def encode_built(build: Callable[[Document], tuple[Example, dict[str, Any]]]) -> Encode:
    """Returns what encodes documents whose example, and truth for evaluation, `build` makes.

    Nothing is cut or left out, as nothing may be that is evaluated.
    """

    def encode(documents: Documents, settings: TaskSettings, skips: Skips) -> Iterator[Features]:
        for document, _ in documents:
            example, truth = build(document)
            features = encode_example(
                example,
                settings.vocabulary,
                settings.encode.num_latents,
                settings.encode.quantiser,
                settings.encode.word_weight,
            )
            skips.kept(document.source)
            yield {**features, TRUTH: truth}

    return encode


class DocumentSource(seqio.FileDataSource):
    """Records of documents in folders that `tools/prepare_data.py` wrote.

    Behind the last record of each pass stands an empty one, so that passes can be counted.
    """

    def __init__(self, folders: Sequence[str], splits: Sequence[str]) -> None:
        """Names the folders, which need not be there yet."""
        super().__init__(
            read_file_fn=tf.data.TFRecordDataset,
            split_to_filepattern={split: _patterns(folders, split) for split in splits},
            # Few files at a time: their shuffled order is what makes epochs differ.
            cycle_length=2,
            block_length=1,
        )
        self._folders = tuple(map(str, folders))

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the records are."""
        return self._folders

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Whether it can be dealt to more shards than it has files."""
        return True

    def list_shards(self, split: str) -> list[str]:
        """The files of a split.

        Raises:
          DataError: a folder is not there, or not complete.
        """
        return [file for folder in self._folders for file in _files(epath.Path(folder), split)]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """One pass over a shard's records; see `list_shards` for errors."""
        if shard_info is None or len(self.list_shards(split)) >= shard_info.num_shards:
            dataset = super().get_dataset(split, shuffle, seed, shard_info)
        else:
            dataset = super().get_dataset(split, shuffle, seed)
            dataset = dataset.shard(shard_info.num_shards, shard_info.index)
        return dataset.concatenate(tf.data.Dataset.from_tensors(_END_OF_PASS))


def add_task(
    name: str,
    folders: Sequence[str],
    settings: TaskSettings,
    kinds: Sequence[str],
    encode: Encode = encode_each,
    *,
    splits: Sequence[str] | None = None,
    chunk: int = 32,
    postprocess_fn: Callable[..., Any] | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (),
) -> None:
    """Adds a seqio task over prepared documents, in place of any of the same name.

    Its output features are those of `kosmos2_jax.data.features.output_features`. `settings` are
    cut to the sequence lengths that seqio is given, so that examples fit into rows.

    Args:
      name: of the task.
      folders: outputs of `tools/prepare_data.py`; read as one source.
      settings: how documents become examples.
      kinds: of documents that make sense here; others are an error.
      encode: makes examples of documents.
      splits: that the folders have; by default "train" and what else all of them have.
      chunk: documents that are handed to Python at a time, as a call costs more than a document.
      postprocess_fn: see `seqio.Task`.
      metric_fns: see `seqio.Task`.
    """
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    reader = _Reader(name, tuple(map(str, folders)), tuple(kinds), encode)

    def preprocess(
        dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None
    ) -> tf.data.Dataset:
        return _encoded(dataset.batch(chunk), reader, _within(settings, sequence_length))

    seqio.TaskRegistry.add(
        name,
        source=DocumentSource(folders, _splits(folders) if splits is None else splits),
        preprocessors=[preprocess],
        output_features=output_features(settings.vocabulary),
        postprocess_fn=postprocess_fn,
        metric_fns=list(metric_fns),
        shuffle_buffer_size=settings.shuffle_buffer,
    )


def truth_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """What the encoder of an example left for its evaluation."""
    return json.loads(example[TRUTH])


def _splits(folders: Sequence[str]) -> list[str]:
    finished = [{path.stem for path in epath.Path(folder).glob("*.json")} for folder in folders]
    return ["train", *sorted(set.intersection(*finished) - {"train"})]


def _patterns(folders: Sequence[str], split: str) -> list[str]:
    return [f"{folder}/{split}-*-of-*.tfrecord" for folder in folders]


def _files(folder: epath.Path, split: str) -> list[str]:
    files = sorted(str(path) for path in folder.glob(f"{split}-*-of-*.tfrecord"))
    shards = _SHARD.search(files[0]) if files else None
    # The counts are written last.
    if shards is None or not (folder / f"{split}.json").exists():
        raise DataError(
            f"{str(folder)!r} holds no finished split {split!r}: name the folder that "
            "tools/prepare_data.py wrote, or run it to its end."
        )
    if len(files) != int(shards[1]):
        raise DataError(
            f"{str(folder)!r} holds {len(files)} files of split {split!r}, where their names say "
            f"{int(shards[1])}: prepare it again."
        )
    return files


def _within(settings: TaskSettings, lengths: Mapping[str, int] | None) -> TaskSettings:
    """The settings, for examples that fit into a row of these lengths."""
    if lengths is None:
        return settings
    encode = dataclasses.replace(
        settings.encode,
        max_tokens=min(settings.encode.max_tokens, lengths["targets"]),
        max_images=min(settings.encode.max_images, max(lengths["images"], 1)),
    )
    return dataclasses.replace(settings, encode=encode)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """What reads the documents of a task."""

    task: str
    folders: tuple[str, ...]
    kinds: tuple[str, ...]
    encode: Encode

    def document(self, record: bytes) -> Document:
        document = from_tf_example(record)
        if document.kind not in self.kinds:
            raise DataError(
                f"Task {self.task!r} reads documents of kind {' or '.join(self.kinds)}, but source "
                f"{document.source!r} is of kind {document.kind!r}: give it other folders than "
                f"{', '.join(self.folders)}."
            )
        return document


@dataclasses.dataclass
class _Place:
    """What is carried from chunk to chunk.

    Attributes:
      passes: over all documents, finished so far.
      read: documents of this pass.
      dry: documents since the last example.
      counts: what was counted since then; they travel with the next example.
    """

    passes: int
    read: int
    dry: int
    counts: Skips

    @classmethod
    def from_arrays(cls, numbers: np.ndarray, counts: bytes) -> _Place:
        return cls(*numbers.tolist(), Skips.from_dict(json.loads(counts)))

    def to_arrays(self) -> tuple[np.ndarray, bytes]:
        numbers = np.array([self.passes, self.read, self.dry], np.int64)
        return numbers, json.dumps(self.counts.to_dict()).encode()

    def take_note(self, task: str) -> bytes:
        """What was counted, for an example that there now is."""
        note = write_note(task, self.counts)
        self.dry = 0
        self.counts.clear()
        return note

    def end_pass(self, reader: _Reader) -> None:
        if not self.read:
            raise DataError(
                f"A stream of task {reader.task!r} finds no documents in "
                f"{', '.join(reader.folders)}: prepare more, or set fewer data.streams."
            )
        self.stop_if_dry(reader, self.read)
        self.passes, self.read = self.passes + 1, 0

    def stop_if_dry(self, reader: _Reader, limit: int) -> None:
        if self.dry >= limit:
            raise DataError(
                f"None of {self.dry:,} documents of task {reader.task!r} gave an example: check "
                f"{', '.join(reader.folders)} ({' '.join(self.counts.report().split())})."
            )


def _encoded(chunks: tf.data.Dataset, reader: _Reader, settings: TaskSettings) -> tf.data.Dataset:
    """Examples out of chunks of records."""

    def step(
        state: tuple[tf.Tensor, tf.Tensor], records: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
        *sequences, images, sizes, notes, truths, numbers, pending = tf.numpy_function(
            functools.partial(_encode_chunk, reader, settings),
            [records, *state],
            [*_SEQUENCES.values(), tf.string, tf.int32, tf.string, tf.string, tf.int64, tf.string],
            # Stateless, or else the input pipeline could not be checkpointed.
            stateful=False,
        )
        found = dict(zip(_SEQUENCES, sequences, strict=True)) | {"images": images, "sizes": sizes}
        found = {name: tf.ensure_shape(value, [None, None]) for name, value in found.items()}
        found |= {NOTE: tf.ensure_shape(notes, [None]), TRUTH: tf.ensure_shape(truths, [None])}
        return (tf.ensure_shape(numbers, [3]), tf.ensure_shape(pending, [])), found

    def cut(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        sizes = features.pop("sizes")
        lengths = dict.fromkeys(_SEQUENCES, sizes[0]) | {"images": sizes[1]}
        return {k: v[: lengths[k]] if k in lengths else v for k, v in features.items()}

    start = (tf.zeros([3], tf.int64), tf.constant("{}"))
    return chunks.scan(start, step).unbatch().map(cut)


def _encode_chunk(
    reader: _Reader,
    settings: TaskSettings,
    records: np.ndarray,
    numbers: np.ndarray,
    pending: bytes,
) -> tuple[Any, ...]:
    """What `_encoded` does for one chunk; see there for what it returns."""
    place = _Place.from_arrays(numbers, pending)
    examples: list[tuple[Features, bytes]] = []

    def read(record: bytes) -> tuple[Document, int]:
        place.read += 1
        place.dry += 1
        return reader.document(record), place.passes

    def encode(group: list[bytes]) -> None:
        # Documents are read as they are needed, so that counts travel with the next example.
        for features in reader.encode(map(read, group), settings, place.counts):
            examples.append((features, place.take_note(reader.task)))
        place.stop_if_dry(reader, _HOPELESS)

    group: list[bytes] = []
    for record in records.tolist():
        if record != _END_OF_PASS:
            group.append(record)
            continue
        encode(group)
        group = []
        place.end_pass(reader)
    encode(group)
    return *_stack(examples), *place.to_arrays()


def _stack(examples: Sequence[tuple[Features, bytes]]) -> tuple[np.ndarray, ...]:
    """Examples of different sizes as arrays [examples, longest]."""
    found = [features for features, _ in examples]
    sizes = [(len(features["targets"]), len(features["images"])) for features in found]
    longest = np.array(sizes, np.int32).reshape(-1, 2).max(axis=0, initial=0)
    arrays = [np.zeros((len(found), longest[0]), t.as_numpy_dtype) for t in _SEQUENCES.values()]
    images = np.full((len(found), longest[1]), b"", object)
    for row, features in enumerate(found):
        for array, name in zip(arrays, _SEQUENCES, strict=True):
            array[row, : sizes[row][0]] = features[name]
        images[row, : sizes[row][1]] = features["images"]
    return (
        *arrays,
        images,
        np.array(sizes, np.int32).reshape(-1, 2),
        np.array([note for _, note in examples], object),
        np.array([json.dumps(f.get(TRUTH)).encode() for f in found], object),
    )
