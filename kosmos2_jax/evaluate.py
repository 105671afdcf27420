"""Evaluation: `python -m kosmos2_jax.evaluate --config=configs/evaluate.py --workdir=DIR`.

The story of an evaluation: settings, mesh, model, data, tasks, figures. Leaves `metrics.json` and,
for each task, a sheet of pictures and what the model wrote.
"""

from __future__ import annotations

if __name__ == "__main__":  # before JAX is imported, which takes seconds
    from kosmos2_jax.startup import prepare_environment
    from kosmos2_jax.training.usage import answer_help

    answer_help("evaluate", __doc__)
    prepare_environment()

import dataclasses
import json

import jax
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
from kosmos2_jax.training.processes import is_first, place, run_program
from kosmos2_jax.training.program import run_story
from kosmos2_jax.training.progress import say
from kosmos2_jax.training.run_config import EvaluationRun, RunConfig
from kosmos2_jax.training.run_data import prepare_data
from kosmos2_jax.training.run_step import run_model
from kosmos2_jax.training.sheets import write_sheets
from kosmos2_jax.training.task_evaluation import TaskEvaluation, TaskResult
from kosmos2_jax.training.work_folder import open_work_folder

METRICS_JSON = "metrics.json"


def evaluate(run: EvaluationRun, workdir: epath.PathLike) -> dict[str, TaskResult]:
    """Measures a finished model on tasks.

    Leaves `metrics.json`, `environment.jsonl`, `sheets/TASK.png` and `outputs/TASK.jsonl`.

    Returns:
      Result by task.

    Raises:
      ConfigError: no checkpoint or no tasks are named, or the data are tokenized otherwise than
        the model's.
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
        checkpoint = _load(run, mesh)
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
        results = tasks(checkpoint.params, run.evaluation.examples)

    # Figures
    figures = {name: value for r in results.values() for name, value in r.metrics.items()}
    write_sheets(results, workdir / "sheets")
    if is_first():
        (workdir / METRICS_JSON).write_text(json.dumps(figures, indent=2) + "\n")
        _write_outputs(results, workdir / "outputs")
    say(", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    return results


def _load(run: EvaluationRun, mesh: Mesh) -> Checkpoint:
    """The checkpoint, its parameters where they belong."""
    checkpoint = open_checkpoint(run.checkpoint, run.tokenizer or None)
    boxed = jax.eval_shape(lambda: initial_params(checkpoint.config, jax.random.key(0)))
    shardings = flatten(param_shardings(boxed, mesh))
    params = nest(flatten(checkpoint.params), lambda path, leaf: place(leaf, shardings[path]))
    return dataclasses.replace(checkpoint, params=params)


def _write_outputs(results: dict[str, TaskResult], folder: epath.Path) -> None:
    """What the model wrote for each example of a task, a line of JSON each."""
    folder.mkdir(exist_ok=True)
    for name, result in results.items():
        lines = [json.dumps({"output": output}) for output in result.outputs]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def main() -> int:
    """Runs the command line; errors a user can mend are one line. Gives the exit status."""
    return run_story("kosmos2_jax.evaluate", EvaluationRun, evaluate)


if __name__ == "__main__":
    run_program(main)
