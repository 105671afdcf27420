"""Evaluation: `python -m kosmos2_jax.evaluate --config=configs/evaluate.py --workdir=DIR`.

The story of an evaluation: settings, mesh, model, data, tasks, figures. Leaves `metrics.json` and,
for each task, a sheet of pictures and what the model wrote, by example, in `predictions/`. The same
command goes on where an earlier one was stopped: what is in `predictions/` is not asked again.
"""

from __future__ import annotations

if __name__ == "__main__":  # before JAX is imported, which takes seconds
    from kosmos2_jax.training.usage import answer_help

    answer_help("evaluate", __doc__)

import dataclasses
import hashlib
import json

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.interop.checkpoint import Checkpoint
from kosmos2_jax.interop.convert import open_checkpoint
from kosmos2_jax.interop.layout import flatten, nest
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.partitioning import batch_sharding, check_mesh, make_mesh, param_shardings
from kosmos2_jax.training.environment import record_environment
from kosmos2_jax.training.processes import first_does, is_first, place, run_program
from kosmos2_jax.training.program import run_story
from kosmos2_jax.training.progress import say
from kosmos2_jax.training.run_config import EvaluationRun, RunConfig
from kosmos2_jax.training.run_data import prepare_data
from kosmos2_jax.training.run_step import run_model
from kosmos2_jax.training.sheets import write_sheets
from kosmos2_jax.training.task_evaluation import TaskEvaluation
from kosmos2_jax.training.task_scoring import TaskResult
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
    """Measures a finished model on tasks.

    Leaves `metrics.json`, `environment.jsonl`, `sheets/TASK.png`, and `predictions/TASK.jsonl`,
    from which it goes on.

    Returns:
      Result by task.

    Raises:
      ConfigError: no checkpoint or no tasks are named, or the data are tokenized otherwise than
        the model's, or `workdir` holds the evaluation of another model or in another way.
      CheckpointError: the checkpoint cannot be read.
      TrainingError: `workdir` is in a bucket that cannot be written to.
    """
    for name, given in (
        ("checkpoint", run.checkpoint),
        ("evaluation.tasks", run.evaluation.tasks),
    ):
        if not given:
            raise ConfigError(f"{name} is empty: say what is to be evaluated")
    workdir = open_work_folder(workdir)
    record_environment(workdir)
    mesh = make_mesh(run.mesh)
    with jax.set_mesh(mesh):
        # Model
        checkpoint, digest = _load(run, mesh)
        told = dataclasses.asdict(run) | {"parameters": digest}
        first_does(lambda: keep_settings(workdir / EVALUATION_JSON, told, _MAY_CHANGE))
        settings = RunConfig(
            model=checkpoint.config.replace(dtype=run.dtype),
            data=run.data,
            evaluation=run.evaluation,
            mesh=run.mesh,
            seed=run.seed,
            no_repeat_ngram_size=checkpoint.generation["no_repeat_ngram_size"],
        )
        check_mesh(mesh, settings.model, mesh.size)  # rows are filled up to what it needs

        # Data
        _, vocabulary = prepare_data(settings, workdir)
        theirs = checkpoint.vocabulary
        if theirs is not None and theirs.tokens != vocabulary.tokens:
            raise ConfigError(
                f"the data's tokenizer has {vocabulary.vocab_size} tokens, other than the "
                f"{theirs.vocab_size} of {run.checkpoint}; set data.folder or data.tokenizer to "
                "what the model was trained with"
            )

        # Tasks
        model = run_model(settings)
        lengths = feature_lengths(run.data.length, run.data.images)
        rows = batch_sharding(mesh)
        tasks = TaskEvaluation(model, vocabulary, run.evaluation, lengths, rows, run.split)
        results = tasks(checkpoint.params, run.evaluation.examples, workdir / PREDICTIONS)

    # Figures
    figures = {name: value for r in results.values() for name, value in r.metrics.items()}
    write_sheets(results, workdir / "sheets")
    if is_first():
        (workdir / METRICS_JSON).write_text(json.dumps(figures, indent=2) + "\n")
    say(", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    return results


def _load(run: EvaluationRun, mesh: Mesh) -> tuple[Checkpoint, str]:
    """The checkpoint, its parameters where they belong, and a digest of them."""
    checkpoint = open_checkpoint(run.checkpoint, run.tokenizer or None)
    boxed = jax.eval_shape(lambda: initial_params(checkpoint.config, jax.random.key(0)))
    shardings = flatten(param_shardings(boxed, mesh))
    digest = hashlib.blake2b(digest_size=16)

    def put(path: str, leaf: np.ndarray) -> jax.Array:
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaf).data)
        return place(leaf, shardings[path])

    params = nest(flatten(checkpoint.params), put)
    return dataclasses.replace(checkpoint, params=params), digest.hexdigest()


def main() -> int:
    """Runs the command line; errors a user can mend are one line. Gives the exit status."""
    return run_story("kosmos2_jax.evaluate", EvaluationRun, evaluate)


if __name__ == "__main__":
    run_program(main)
