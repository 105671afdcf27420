"""Evaluation: `python -m kosmos2_jax.evaluate --config=configs/evaluate.py --workdir=DIR`.

The story of an evaluation: settings, mesh, model, data, tasks, report. Leaves `report.html` and
`report.md`, `metrics.json`, sheets of pictures, and what the model answered to each example in
`predictions/`. The same command goes on where an earlier one was stopped: what is in `predictions/`
is not asked again. With `--config.predictions=FOLDER` such files are scored, and no model is asked.
"""

from __future__ import annotations

if __name__ == "__main__":  # before JAX is imported, which takes seconds
    from kosmos2_jax.startup import prepare_environment
    from kosmos2_jax.training.usage import answer_help

    answer_help("evaluate", __doc__)
    prepare_environment()

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from kosmos2_jax.data.benchmark_registry import DRAWN_JSON, prepared_tasks
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.evaluation import coco_java
from kosmos2_jax.evaluation.predictions import answers_of, check_questions, read_predictions
from kosmos2_jax.evaluation.results import Results, TaskReport
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.interop.checkpoint import Checkpoint
from kosmos2_jax.interop.convert import open_checkpoint
from kosmos2_jax.interop.files import as_path
from kosmos2_jax.interop.layout import flatten, nest
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.partitioning import batch_sharding, check_mesh, make_mesh, param_shardings
from kosmos2_jax.training.environment import environment, record_environment
from kosmos2_jax.training.evaluation_report import REPORT_HTML, task_report, write_report
from kosmos2_jax.training.processes import first_does, place, run_program
from kosmos2_jax.training.program import run_story
from kosmos2_jax.training.progress import say
from kosmos2_jax.training.run_config import EvaluationRun, RunConfig
from kosmos2_jax.training.run_data import prepare_data
from kosmos2_jax.training.run_step import run_model
from kosmos2_jax.training.sheets import write_sheets
from kosmos2_jax.training.submissions import write_submissions
from kosmos2_jax.training.task_evaluation import TaskEvaluation, read_together
from kosmos2_jax.training.task_scoring import TaskResult, TaskScoring
from kosmos2_jax.training.work_folder import keep_settings, open_work_folder

METRICS_JSON = "metrics.json"
EVALUATION_JSON = "evaluation.json"
PREDICTIONS = "predictions"
# With other values of these the predictions of an earlier start are as good.
_MAY_CHANGE = (
    "checkpoint",  # a place; "parameters" says what was there
    "mesh",
    "evaluation.tasks",
    "evaluation.examples",
    "evaluation.batch_size",
)


def evaluate(run: EvaluationRun, workdir: epath.PathLike) -> dict[str, TaskResult]:
    """Measures a finished model, or its saved predictions, on tasks.

    Leaves `report.html`, `report.md`, `metrics.json`, `environment.jsonl`, `sheets/TASK.png`,
    `submissions/TASK.json` for benchmarks whose answers a server keeps, and
    `predictions/TASK.jsonl`, from which it goes on.

    Returns:
      Result by task.

    Raises:
      ConfigError: no checkpoint is named or there are no tasks, or the data are tokenized otherwise
        than the model's, or `workdir` holds the evaluation of another model or in another way.
      CheckpointError: the checkpoint cannot be read.
      DataError: a task cannot be asked. If no tasks are named, the others are measured before.
      PredictionError: saved predictions are malformed, or of other tasks.
      TrainingError: `workdir` is in a bucket that cannot be written to.
    """
    if not run.checkpoint:
        raise ConfigError("checkpoint is empty: say what is to be evaluated")
    workdir = open_work_folder(workdir)
    record_environment(workdir)
    mesh = make_mesh(run.mesh)
    with jax.set_mesh(mesh):
        # Model
        checkpoint = open_checkpoint(run.checkpoint, run.tokenizer or None)
        settings = RunConfig(
            model=checkpoint.config.replace(dtype=run.dtype),
            data=_data(run, checkpoint),
            evaluation=run.evaluation,
            mesh=run.mesh,
            seed=run.seed,
            no_repeat_ngram_size=checkpoint.generation["no_repeat_ngram_size"],
        )
        check_mesh(mesh, settings.model, mesh.size)  # rows are filled up to what it needs

        # Data
        _, vocabulary = prepare_data(settings, workdir)
        _check_tokens(run, checkpoint, vocabulary)
        names, not_measured = _tasks(run)

        # Tasks
        lengths = feature_lengths(run.data.length, run.data.images)
        digest = ""
        if run.predictions:

            def measure(name: str) -> TaskResult:
                return read_together(lambda: _rescore(run, name, vocabulary, lengths, settings))
        else:
            params, digest = _load(checkpoint, mesh)
            told = dataclasses.asdict(run) | {"parameters": digest}
            first_does(lambda: keep_settings(workdir / EVALUATION_JSON, told, _MAY_CHANGE))
            model, rows = run_model(settings), batch_sharding(mesh)
            config = dataclasses.replace(run.evaluation, tasks=names)
            tasks = TaskEvaluation(model, vocabulary, config, lengths, rows, run.split)
            limit, folder = run.evaluation.examples, workdir / PREDICTIONS

            def measure(name: str) -> TaskResult:
                return tasks.evaluate(params, name, limit, folder)

        results, failed = _measure(names, measure, is_suite=not run.evaluation.tasks)

    # Report
    figures = {name: value for r in results.values() for name, value in r.metrics.items()}

    def write() -> None:
        write_sheets(results, workdir / "sheets")
        write_submissions(results, workdir / "submissions")
        about, rows = _about(run, settings, digest), _reports(results)
        not_there = failed | not_measured
        write_report(Results(run.checkpoint, about, rows, not_there, _note(run)), workdir)
        (workdir / METRICS_JSON).write_text(json.dumps(figures, indent=2) + "\n")

    first_does(write)
    if not_measured:
        say(f"not measured, as files are missing: {', '.join(not_measured)}")
    say(f"report: {workdir / REPORT_HTML}")
    if failed:
        raise DataError(
            f"{len(failed)} of {len(names)} tasks could not be measured ({', '.join(failed)}); "
            f"mend what {workdir / REPORT_HTML} says of them and run the same command again"
        )
    return results


def _data(run: EvaluationRun, checkpoint: Checkpoint) -> DataConfig:
    """The data's settings; the tokenizer is the checkpoint's, unless another one is named."""
    if run.data.tokenizer or checkpoint.vocabulary is None:
        return run.data
    return dataclasses.replace(run.data, tokenizer=str(checkpoint.vocabulary.model_file))


def _check_tokens(
    run: EvaluationRun, checkpoint: Checkpoint, vocabulary: Kosmos2Vocabulary
) -> None:
    theirs = checkpoint.vocabulary
    if theirs is not None and theirs.tokens != vocabulary.tokens:
        raise ConfigError(
            f"the data's tokenizer has {vocabulary.vocab_size} tokens, other than the "
            f"{theirs.vocab_size} of {run.checkpoint}; set data.folder or data.tokenizer to "
            "what the model was trained with"
        )


def _tasks(run: EvaluationRun) -> tuple[tuple[str, ...], dict[str, str]]:
    """Those that are named, or else all benchmarks that are there; and what others lack."""
    if run.evaluation.tasks:
        return tuple(run.evaluation.tasks), {}
    ready, not_prepared = prepared_tasks()
    if run.predictions:
        ready = tuple(n for n in ready if (as_path(run.predictions) / f"{n}.jsonl").exists())
    if not ready:
        raise ConfigError(
            "there is nothing to measure: name evaluation.tasks, or set data.tasks to benchmarks "
            f"and data.folder, now {run.data.folder!r}, to where they were downloaded; "
            "tools/prepare_eval.py --help says where they come from"
        )
    return ready, not_prepared


def _measure(
    names: Sequence[str], measure: Callable[[str], TaskResult], *, is_suite: bool
) -> tuple[dict[str, TaskResult], dict[str, str]]:
    """Results by task; and why others have none, which a suite survives."""
    results, failed = {}, {}
    for number, name in enumerate(names, 1):
        try:
            results[name] = measure(name)
        except DataError as error:
            if not is_suite:
                raise
            say(f"{name} is not measured: {error}")
            failed[name] = str(error)
        else:
            say(f"{number} of {len(names)}, {name}: {_told(name, results[name].metrics)}")
    return results, failed


def _told(name: str, metrics: Mapping[str, float]) -> str:
    """The figures of a task in a line, without those of groups."""
    figures = {key.removeprefix(f"{name}_"): value for key, value in metrics.items()}
    return ", ".join(f"{key} {value:.3f}" for key, value in figures.items() if "/" not in key)


def _rescore(
    run: EvaluationRun,
    name: str,
    vocabulary: Kosmos2Vocabulary,
    lengths: Mapping[str, int],
    settings: RunConfig,
) -> TaskResult:
    size, limit = settings.model.vision.image_size, run.evaluation.examples
    scoring = TaskScoring(name, vocabulary, lengths, size, run.split, limit)
    file = Path(run.predictions) / f"{name}.jsonl"
    predictions = read_predictions(file, name)
    check_questions(scoring.questions, predictions, name)
    return scoring.score(answers_of(scoring.ids, predictions, name))


def _reports(results: Mapping[str, TaskResult]) -> list[TaskReport]:
    return [task_report(name, result) for name, result in results.items()]


def _about(run: EvaluationRun, settings: RunConfig, digest: str) -> dict[str, str]:
    """What the report tells of how it was measured."""
    machine = environment()
    return {
        "predictions": run.predictions or "made now",
        "parameters": digest or "not read",
        "data": run.data.folder,
        "split of the tasks": run.split,
        "examples of a task": str(run.evaluation.examples or "all"),
        "tokens of an answer, at most": str(run.evaluation.max_new_tokens),
        "no n-gram twice of the length": str(settings.no_repeat_ngram_size),
        "seed of demonstrations": str(run.seed),
        "dtype": run.dtype,
        "METEOR": "measured" if coco_java.is_available() else "not measured, as it needs Java",
        "software": f"kosmos2_jax {machine['kosmos2_jax']}, jax {machine['packages']['jax']}",
        "devices": f"{machine['devices']} x {machine['device']}",
    }


def _note(run: EvaluationRun) -> str:
    """What is to be known before any figure is compared; or nothing."""
    if run.data.folder and (as_path(run.data.folder) / DRAWN_JSON).exists():
        return (
            "These benchmarks were drawn by tools/draw_benchmarks.py, small and easy, to show a "
            "report: the papers' figures beside ours are those of the published ones, and no "
            "difference between them means anything."
        )
    return ""


def _load(checkpoint: Checkpoint, mesh: Mesh) -> tuple[dict[str, Any], str]:
    """The parameters where they belong, and a digest of them."""
    boxed = jax.eval_shape(lambda: initial_params(checkpoint.config, jax.random.key(0)))
    shardings = flatten(param_shardings(boxed, mesh))
    digest = hashlib.blake2b(digest_size=16)

    def put(path: str, leaf: np.ndarray) -> jax.Array:
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaf).data)
        return place(leaf, shardings[path])

    return nest(flatten(checkpoint.params), put), digest.hexdigest()


def main() -> int:
    """Runs the command line; errors a user can mend are one line. Gives the exit status."""
    return run_story("kosmos2_jax.evaluate", EvaluationRun, evaluate)


if __name__ == "__main__":
    run_program(main)
