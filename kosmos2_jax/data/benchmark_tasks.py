"""seqio tasks over benchmarks: their records become prompts, and what is lost counts as wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import seqio
import tensorflow as tf

from kosmos2_jax.data.benchmark_registry import BENCHMARK_TASKS, BenchmarkTask
from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.benchmarks.reading import Problem
from kosmos2_jax.data.benchmarks.records import Record
from kosmos2_jax.data.demonstrations import Demonstrations
from kosmos2_jax.data.document_tasks import TRUTH, TaskSettings
from kosmos2_jax.data.examples import Example, encode_example
from kosmos2_jax.data.features import EXAMPLE_ID, output_features
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
class Questions(Generic[R]):
    """What a task asks.

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
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)

    @functools.cache
    def questions() -> Questions[R]:
        return _ask(benchmark, folder, split, build)

    BENCHMARK_TASKS[name] = BenchmarkTask(benchmark, split, folder, questions, num_beams, shots)
    shown = Demonstrations(
        lambda: _ask(benchmark, folder, BENCHMARKS[benchmark].train, build).records.values(),
        lambda record: build(record, read_picture(record.image)),
        shots,
        settings.seed,
    )

    def build_all(record: R, picture: bytes) -> Example:
        return Example((*shown.before(record.id), *build(record, picture).parts))

    def source(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices({"id": list(questions().records)})

    def preprocess(
        dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None
    ) -> tf.data.Dataset:
        limit = sequence_length["targets"] if sequence_length else None
        encode = functools.partial(_encode, name, questions, build_all, settings, limit)
        return dataset.map(functools.partial(_features, encode))

    def postprocess(output: str, example: Mapping[str, Any], is_target: bool) -> Any:
        record = questions().records[json.loads(example[TRUTH])]
        return record if is_target else read(output, record)

    def figures(targets: list[R], predictions: list[Any]) -> dict[str, float]:
        lost, whole = len(questions().problems), len(targets) == len(questions().records)
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


def _ask(benchmark: str, folder: Path, split: str, build: Build[R]) -> Questions[R]:
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
            build(record, b"")
        except (MarkupError, BoxError) as error:
            problems.append(Problem(record.id, str(error)))
        else:
            records[record.id] = record
    return Questions(records, tuple(problems))


def _encode(
    name: str,
    questions: Callable[[], Questions[R]],
    build: Build[R],
    settings: TaskSettings,
    limit: int | None,
    identity: bytes,
) -> tuple[np.ndarray, ...]:
    record = questions().records[identity.decode()]
    picture = read_picture(record.image)
    encode = settings.encode
    features = encode_example(
        build(record, picture), settings.vocabulary, encode.num_latents, encode.quantiser
    )
    if limit is not None and len(features["targets"]) > limit:
        raise DataError(
            f"Example {record.id!r} of {name} has {len(features['targets'])} tokens: set "
            f"data.length to {len(features['targets']) - 1} or more."
        )
    return (*features.values(), json.dumps(record.id).encode())


def read_picture(path: str) -> bytes:
    """Returns a picture as it is.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path!r} cannot be read: {error.strerror}.") from None


def _features(
    encode: Callable[[bytes], tuple[np.ndarray, ...]], given: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    types = {
        "targets": tf.int32,
        "loss_weights": tf.float32,
        "image_slots": tf.int32,
        "images": tf.string,
    }
    *sequences, truth = tf.numpy_function(
        encode, [given["id"]], [*types.values(), tf.string], stateful=False
    )
    found = {
        name: tf.ensure_shape(value, [None]) for name, value in zip(types, sequences, strict=True)
    }
    return found | {TRUTH: tf.ensure_shape(truth, []), EXAMPLE_ID: given["id"]}
