"""seqio tasks over benchmarks: their records become prompts, and what is lost counts as wrong."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np
import seqio
import tensorflow as tf

from kosmos2_jax.data.benchmark_registry import BENCHMARK_TASKS, BenchmarkTask
from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.reading import Problem
from kosmos2_jax.data.benchmarks.records import Record
from kosmos2_jax.data.choices import CANDIDATES, longest, read_rows
from kosmos2_jax.data.demonstrations import Demonstrations
from kosmos2_jax.data.document_tasks import TRUTH, TaskSettings
from kosmos2_jax.data.examples import Example, encode_example
from kosmos2_jax.data.features import EXAMPLE_ID, QUESTION, output_features
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.errors import BoxError, MarkupError
from kosmos2_jax.grounding.boxes import Box

# The only split of these tasks: a split of a benchmark is a task of its own.
SPLIT = "test"

R = TypeVar("R", bound=Record)

# Makes the example of a record and its encoded picture; all before its target is the prompt.
Build = Callable[[R, bytes], Example]
# Reads what the model wrote about a record.
Read = Callable[[str, R], Any]
# Figures of answers, by name.
Measure = Callable[[Sequence[R], Sequence[Any]], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class AskedRecords(Generic[R]):
    """What of a benchmark a task asks.

    Attributes:
      records: by id, in the order of the benchmark.
      problems: examples that are lost.
    """

    records: dict[str, R]
    problems: tuple[Problem, ...]


def add_benchmark_task(
    name: str,
    benchmark: str,
    split: str,
    folder: Path,
    settings: TaskSettings,
    *,
    build: Build[R],
    read: Read[R],
    measure: Measure[R],
    num_beams: int = 1,
    shots: int = 0,
) -> None:
    """Adds a task over one split of a benchmark, in place of any of the same name.

    Nothing is read before the task is. Figures are named `{name}_{figure}`, and `{name}_lost` is
    how many examples cannot be asked. These count as wrong: figures are over all examples, unless
    only the first ones are asked. Figures of groups, with a "/" in their names, leave them out, as
    nobody knows their group.

    Args:
      name: of the task.
      benchmark: name in `BENCHMARKS`.
      split: of the benchmark.
      folder: of the download.
      settings: vocabulary and pictures.
      build: see `Build`; what it cannot express as markup is lost.
      read: see `Read`.
      measure: see `Measure`; 0 must be the worst.
      num_beams: see `BenchmarkTask`.
      shots: demonstrations before what is asked, drawn for each example by `settings.seed`.
    """
    encode = settings.encode

    def ask(split: str) -> AskedRecords[R]:
        return ask_records(benchmark, folder, split, lambda record: build(record, b""))

    shown = Demonstrations(
        lambda: ask(BENCHMARKS[benchmark].train).records.values(),
        lambda record: build(record, read_picture(record.image)),
        shots,
        settings.seed,
    )

    def features(record: R) -> dict[str, Any]:
        own = build(record, read_picture(record.image))
        example = Example((*shown.before(record.id), *own.parts))
        return encode_example(example, settings.vocabulary, encode.num_latents, encode.quantiser)

    asked = functools.cache(lambda: ask(split))
    task = BenchmarkTask(benchmark, split, folder, asked, num_beams, shots)
    register_task(name, task, settings, encode=features, read=read, measure=measure)


def register_task(
    name: str,
    task: BenchmarkTask,
    settings: TaskSettings,
    *,
    encode: Callable[[R], Mapping[str, Any]],
    read: Read[R],
    measure: Measure[R],
    more: Mapping[str, tf.DType] = MappingProxyType({}),
) -> None:
    """Adds a task over records to seqio; see `add_benchmark_task`.

    Args:
      name: of the task.
      task: whose records are asked.
      settings: vocabulary and pictures.
      encode: gives the features of a record, those of `encode_example` and `more`.
      read: see `Read`.
      measure: see `Measure`.
      more: types of further features, which have one value each.
    """
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    BENCHMARK_TASKS[name] = task
    asked = task.asked

    def source(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices({"id": list(asked().records)})

    def preprocess(
        dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None
    ) -> tf.data.Dataset:
        def encoded(identity: bytes) -> tuple[Any, ...]:
            record = asked().records[identity.decode()]
            features = encode(record)
            _check_lengths(name, record.id, features, sequence_length or {}, settings)
            return (*features.values(), json.dumps(record.id).encode(), _digest(features))

        return dataset.map(functools.partial(_features, encoded, more))

    def postprocess(output: str, example: Mapping[str, Any], is_target: bool) -> Any:
        record = asked().records[json.loads(example[TRUTH])]
        return record if is_target else read(output, record)

    def figures(targets: list[R], predictions: list[Any]) -> dict[str, float]:
        lost, whole = len(asked().problems), len(targets) == len(asked().records)
        share = len(targets) / (len(targets) + lost) if whole else 1.0
        found = {
            f"{name}_{key}": value if "/" in key else value * share
            for key, value in measure(targets, predictions).items()
        }
        return found | {f"{name}_lost": float(lost)}

    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(source, splits=(SPLIT,)),
        preprocessors=[preprocess],
        output_features=output_features(settings.vocabulary),
        postprocess_fn=postprocess,
        metric_fns=[figures],
    )


def fractions(box: Box, size: tuple[int, int]) -> Box:
    """Returns a box of pixels as fractions of its picture, without what is outside of it."""
    width, height = size
    corners = (box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height)
    return Box(*(min(max(corner, 0.0), 1.0) for corner in corners))


def pixels(box: Box, size: tuple[int, int]) -> Box:
    """Returns a box of fractions of its picture in pixels."""
    width, height = size
    return Box(box.x1 * width, box.y1 * height, box.x2 * width, box.y2 * height)


def ask_records(
    benchmark: str, folder: Path, split: str, check: Callable[[R], object]
) -> AskedRecords[R]:
    """Reads a benchmark.

    Args:
      benchmark: name in `BENCHMARKS`.
      folder: of the download.
      split: of the benchmark.
      check: raises `MarkupError` or `BoxError` for a record that cannot be asked.

    Raises:
      DataError: a file is missing or is another one, or nothing in it can be asked.
    """
    entry = BENCHMARKS[benchmark]
    missing = entry.missing(folder, split)
    if missing:
        raise DataError(
            f"{str(folder)!r} lacks {', '.join(missing)} of {benchmark}: see tools/prepare_eval.py."
        )
    reading = entry.read(folder, split)
    records, problems = {}, list(reading.problems)
    for record in reading.records:
        try:
            check(record)
        except (MarkupError, BoxError) as error:
            problems.append(Problem(record.id, str(error)))
        else:
            records[record.id] = record
    if not records:
        raise DataError(
            f"None of the {len(problems):,} examples of {benchmark}, split {split}, can be asked; "
            f"the last one, {problems[-1].id}: {problems[-1].reason}"
        )
    return AskedRecords(records, tuple(problems))


def read_picture(path: str) -> bytes:
    """Returns a picture as it is.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path!r} cannot be read: {error.strerror}.") from None


def _check_lengths(
    name: str,
    identity: str,
    features: Mapping[str, Any],
    limits: Mapping[str, int],
    settings: TaskSettings,
) -> None:
    tokens, most = len(features["targets"]), settings.encode.max_tokens
    if tokens > most:
        raise DataError(
            f"Example {identity!r} of {name} has {tokens:,} tokens, more than the {most:,} that "
            "the model reads: leave the task out of evaluation.tasks."
        )
    if CANDIDATES in features:
        tokens = max(tokens, longest(read_rows(features[CANDIDATES])))
    if tokens > limits.get("targets", tokens):
        raise DataError(
            f"Example {identity!r} of {name} has {tokens} tokens: set data.length to {tokens - 1} "
            "or more."
        )
    pictures, limit = len(features["images"]), limits.get("images", 0)
    if limit and pictures > limit:  # who wants no pictures at all may go without
        raise DataError(
            f"Example {identity!r} of {name} has {pictures} pictures: set data.images to "
            f"{pictures} or more."
        )


def _digest(features: Mapping[str, Any]) -> bytes:
    """Of what is asked: candidates with their prompts, or else the prompt; and pictures."""
    first = int(np.argmax(features["loss_weights"] > 0))
    asked = features.get(CANDIDATES, features["targets"][:first].tobytes())
    digest = hashlib.blake2b(asked, digest_size=8)
    for picture in features["images"]:
        digest.update(hashlib.blake2b(picture, digest_size=8).digest())
    return digest.hexdigest().encode()


def _features(
    encode: Callable[[bytes], tuple[Any, ...]],
    more: Mapping[str, tf.DType],
    given: Mapping[str, tf.Tensor],
) -> dict[str, tf.Tensor]:
    types = {
        "targets": tf.int32,
        "loss_weights": tf.float32,
        "image_slots": tf.int32,
        "images": tf.string,
    }
    single = {**more, TRUTH: tf.string, QUESTION: tf.string}
    found = tf.numpy_function(
        encode, [given["id"]], [*types.values(), *single.values()], stateful=False
    )
    shapes = [[None]] * len(types) + [[]] * len(single)
    names = (*types, *single)
    features = {
        name: tf.ensure_shape(value, shape)
        for name, value, shape in zip(names, found, shapes, strict=True)
    }
    return features | {EXAMPLE_ID: given["id"]}
