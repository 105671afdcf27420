"""Training: `python -m kosmos2_jax.train --config=configs/quickstart.py --workdir=DIR`.

The story of a run: settings, mesh, data, model, state, step, loop.

Exit status: 0 when the run is finished; 1 for an error that a user can mend, told in one line; 75
(EX_TEMPFAIL) when SIGTERM or Ctrl-C stopped it and everything is saved: start it again.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packed_pipeline import PackedBatches, packed_batches
from kosmos2_jax.data.skips import MIN_EXAMPLES_TO_STOP
from kosmos2_jax.errors import ConfigError, Kosmos2Error
from kosmos2_jax.evaluate import TaskResult, evaluate_tasks
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.inference.decoding import GenerationConfig
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.interop.checkpoint import NO_REPEAT_NGRAM_SIZE
from kosmos2_jax.interop.files import new_file
from kosmos2_jax.interop.layout import unstack_layers
from kosmos2_jax.interop.names import num_parameters
from kosmos2_jax.interop.orbax_io import save_folder
from kosmos2_jax.partitioning import batch_sharding, check_mesh, make_mesh
from kosmos2_jax.training.checkpoints import RunCheckpoints
from kosmos2_jax.training.metric_log import MetricLog
from kosmos2_jax.training.nonfinite import SkippedUpdates
from kosmos2_jax.training.optimizer import (
    learning_rate_schedule,
    make_optimizer,
    updates_made,
)
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.settings import parse_command_line
from kosmos2_jax.training.signals import EXIT_RESTART, Interrupted, StopRequest
from kosmos2_jax.training.state import TrainState, create_state, state_shardings, warm_up
from kosmos2_jax.training.step import make_train_step

RUN_JSON = "run.json"
MODEL_FOLDER = "model"
BEST_FOLDER = "best"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run leaves.

    Attributes:
      run: its resolved settings.
      model: folder of the model, in our own checkpoint format.
      results: of the last evaluation, by task.
    """

    run: RunConfig
    model: Path
    results: dict[str, TaskResult]


def train(run: RunConfig, workdir: Path) -> Trained:
    """Trains `run` in `workdir`, going on from its last whole checkpoint if there is one.

    Leaves `run.json` (the resolved settings), `metrics.jsonl`, TensorBoard's files,
    `checkpoints/`, and the trained model in our own checkpoint format, in `model/`; the best one
    in `best/` if `run.evaluation.best_metric` says what is good.

    Raises:
      ConfigError: the work folder holds a run with other settings, or no evaluation gives
        `best_metric`.
      CheckpointError: no checkpoint is whole, or one could not be written.
      TrainingError: too many updates were skipped in a row.
      Interrupted: SIGTERM or SIGINT came between the first update and the last. The update under
        way was finished and saved. At any other time the signals end the program as usual.
    """
    mesh = make_mesh(run.mesh)
    check_mesh(mesh, run.model, run.data.batch_size, run.micro_batches)
    with jax.set_mesh(mesh):  # the model places its activations by it
        return _train_on(mesh, run, workdir)


def _train_on(mesh: Mesh, run: RunConfig, workdir: Path) -> Trained:
    workdir.mkdir(parents=True, exist_ok=True)

    # Data
    mixture, vocabulary = prepare_data(run, workdir)
    run = with_vocabulary(run, vocabulary)
    _record_run(run, workdir)
    batches = open_batches(run, mixture, run.data.batch_size, pack=run.data.pack)

    # Model, state, step
    model = Kosmos2Model(run.model, generation_config(run), run.loss_chunk)
    optimizer = make_optimizer(run.optimizer)
    shardings = state_shardings(run, optimizer, mesh)
    checkpoints = RunCheckpoints(
        workdir / "checkpoints", run.keep_checkpoints, run.evaluation.best_mode
    )
    shapes = jax.eval_shape(lambda: create_state(run, optimizer, shardings))
    done = checkpoints.latest() or 0
    if done:
        state = checkpoints.restore(done, shapes, shardings, batches)
        _say(f"going on from update {done}")
    else:
        state = create_state(run, optimizer, shardings)
        if run.warm_start.steps:
            first = run.warm_start
            lessons = open_batches(run, first.task, first.batch_size, pack=False)
            state = warm_up(run, state, shardings, vocabulary, lessons)
            lessons.close()
    _say(f"{num_parameters(run.model):,} parameters on {mesh.size} device(s)")
    train_step = make_train_step(
        model.loss_fn, optimizer, shardings, batch_sharding(mesh), run.seed, run.micro_batches
    )

    # Loop
    log = MetricLog(workdir, done)
    evaluation = Evaluation(run, model, vocabulary, log, checkpoints)
    skipped = SkippedUpdates(done - updates_made(state.opt_state), run.max_skipped_updates)
    schedule = learning_rate_schedule(run.optimizer)
    steps = run.optimizer.total_steps
    if run.evaluation.due(done) and 0 < done < steps and not log.evaluated(done):
        evaluation(done, state, run.evaluation.quick_examples)  # the run was stopped before it
    pending: list[dict[str, jax.Array]] = []
    clock = time.perf_counter()
    bar = tqdm(total=steps, initial=done, unit="update", mininterval=2.0, disable=done == steps)
    with StopRequest() as stop:
        for step in range(done + 1, steps + 1):
            batch = jax.device_put(next(batches), batch_sharding(mesh))
            state, metrics = train_step(state, batch)
            pending.append(metrics)
            bar.update()
            last = step == steps
            if step % run.log_every == 0 or last:
                found = jax.device_get(pending)
                skipped.read(found)
                values = summarise(found)
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                bar.set_postfix(loss=f"{values.get('train/loss', math.nan):.3f}")
                values["train/learning_rate"] = float(schedule(step - 1 - skipped.total))
                values["train/skipped_updates"] = skipped.total
                values["train/rows_per_second"] = len(pending) * run.data.batch_size / seconds
                log.write(step, {**values, **data_figures(run, step, batches)})
                skipped.check(step, batch, workdir)
                batches.skips().check(run.data.max_skipped, MIN_EXAMPLES_TO_STOP)
                checkpoints.check()
                pending = []
            evaluating = run.evaluation.due(step) and not last
            if step % run.checkpoint_every == 0 or last or (evaluating and evaluation.finds_best):
                checkpoints.save(step, state, batches)
            if evaluating and not stop.signal:
                evaluation(step, state, run.evaluation.quick_examples)
                clock = time.perf_counter()  # an evaluation is not training time
            if stop.signal and not last:
                checkpoints.save(step, state, batches)
                checkpoints.close()
                raise Interrupted(
                    f"stopped by {stop.signal.name} after update {step}, which is saved; run the "
                    "same command again to go on"
                )
    bar.close()
    if done < steps:
        _say(f"read:\n{batches.skips().report()}")
    batches.close()

    save_model(workdir / MODEL_FOLDER, run, vocabulary, state)
    results = evaluation(steps, state, run.evaluation.examples)
    if evaluation.finds_best:
        best = checkpoints.best() or steps
        if best != steps:
            state = checkpoints.restore(best, shapes, shardings)
        save_model(workdir / BEST_FOLDER, run, vocabulary, state)
        _say(f"{workdir / BEST_FOLDER} is the model after update {best}")
    checkpoints.close()
    log.close()
    return Trained(run, workdir / MODEL_FOLDER, results)


def prepare_data(run: RunConfig, workdir: Path) -> tuple[str, Kosmos2Vocabulary]:
    """Makes what is missing of the run's data; registers it.

    Returns:
      The name of the training mixture, and the vocabulary.

    Raises:
      ConfigError: there is no such module of tasks.
    """
    ours, own = f"kosmos2_jax.tasks.{run.data.tasks}", run.data.tasks
    for module in (ours, own):
        if _is_there(module):
            folder = Path(run.data.folder) if run.data.folder else workdir / "data"
            return importlib.import_module(module).prepare(folder, run.data, run.model, run.seed)
    raise ConfigError(f"data.tasks names no module: there is neither {ours} nor {own}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a package around it is missing; no name at all
        return False


def open_batches(run: RunConfig, mixture: str, batch_size: int, *, pack: bool) -> PackedBatches:
    """Endless batches of a mixture or task, from the beginning."""
    data = run.data
    return packed_batches(
        mixture,
        feature_lengths(data.length, data.images),
        batch_size,
        run.seed,
        image_size=run.model.vision.image_size,
        pack=pack,
        open_rows=data.open_rows,
        image_mode=data.image_mode,
        num_streams=data.streams,
        threads=data.threads,
    )


def data_figures(run: RunConfig, step: int, batches: PackedBatches) -> dict[str, float]:
    """What was read in all updates so far: proportions, fullness of rows, and what was skipped."""
    tasks, skips = batches.tasks(), batches.skips()
    examples, tokens = (sum(column) for column in zip(*tasks.values(), strict=True))
    values = {"data/fill": tokens / (step * run.data.batch_size * run.data.length)}
    for task, (its_examples, its_tokens) in sorted(tasks.items()):
        values[f"data/examples/{task}"] = its_examples / examples
        values[f"data/tokens/{task}"] = its_tokens / tokens
    skipped = {source: skips.num_skipped(source) for source in skips.sources()}
    return values | {f"data/skipped/{source}": float(n) for source, n in skipped.items() if n}


def with_vocabulary(run: RunConfig, vocabulary: Kosmos2Vocabulary) -> RunConfig:
    """Fills in a vocabulary size of 0; any other must be the tokenizer's."""
    size = run.model.decoder.vocab_size
    if size not in (0, vocabulary.vocab_size):
        raise ConfigError(
            f"model.decoder.vocab_size is {size}, the data's tokenizer has "
            f"{vocabulary.vocab_size} tokens; set 0 to take its size"
        )
    model = run.model.replace(decoder={"vocab_size": vocabulary.vocab_size})
    return dataclasses.replace(run, model=model)


def generation_config(run: RunConfig) -> GenerationConfig:
    """How answers are written while evaluating."""
    return GenerationConfig(
        max_new_tokens=run.evaluation.max_new_tokens,
        no_repeat_ngram_size=run.no_repeat_ngram_size,
    )


def summarise(pending: Iterable[dict[str, np.ndarray]]) -> dict[str, float]:
    """Means over the updates that were not skipped; sums are divided by those of their weights."""
    made = [metrics for metrics in pending if not metrics["skipped"]]
    if not made:
        return {}
    columns = {name: [float(metrics[name]) for metrics in made] for name in made[0]}
    weight = sum(columns["weight"])
    return {
        "train/loss": sum(
            loss * w for loss, w in zip(columns["loss"], columns["weight"], strict=True)
        )
        / weight,
        "train/accuracy": sum(columns["correct"]) / weight,
        "train/gradient_norm": float(np.mean(columns["gradient_norm"])),
        "train/target_tokens": weight / len(columns["weight"]),
    }


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The evaluations of a run: written to the log, and noted where the best checkpoint is kept."""

    run: RunConfig
    model: Kosmos2Model
    vocabulary: Kosmos2Vocabulary
    log: MetricLog
    checkpoints: RunCheckpoints

    def __post_init__(self) -> None:
        if self.finds_best:
            for step, figure in self.log.former(f"eval/{self.run.evaluation.best_metric}").items():
                self.checkpoints.note(step, figure)

    @property
    def finds_best(self) -> bool:
        """Whether the best checkpoint is kept."""
        return bool(self.run.evaluation.best_metric)

    def __call__(self, step: int, state: TrainState, limit: int) -> dict[str, TaskResult]:
        """Measures the model after `step` on at most `limit` examples a task, 0 for all.

        Raises:
          ConfigError: `best_metric` is not among the figures.
        """
        run = self.run
        if not run.evaluation.tasks:
            return {}
        lengths = feature_lengths(run.data.length, run.data.images)
        results = evaluate_tasks(
            self.model, state.params, self.vocabulary, run.evaluation, lengths, limit
        )
        figures = {name: value for r in results.values() for name, value in r.metrics.items()}
        self.log.write(step, {f"eval/{name}": value for name, value in figures.items()})
        _say(f"update {step}: " + ", ".join(f"{n} {v:.3f}" for n, v in figures.items()))
        if self.finds_best:
            if run.evaluation.best_metric not in figures:
                raise ConfigError(
                    f"evaluation.best_metric {run.evaluation.best_metric!r} is not among what "
                    f"the tasks measure: {', '.join(sorted(figures))}"
                )
            self.checkpoints.note(step, figures[run.evaluation.best_metric])
        return results


def save_model(
    folder: Path, run: RunConfig, vocabulary: Kosmos2Vocabulary, state: TrainState
) -> None:
    """Writes the model of a state in our own checkpoint format, in place of an older one."""
    save_folder(
        folder,
        unstack_layers(jax.device_get(state.params), run.model),
        run.model,
        vocabulary,
        {NO_REPEAT_NGRAM_SIZE: run.no_repeat_ngram_size},
        overwrite=True,
    )


def _record_run(run: RunConfig, workdir: Path) -> None:
    """Writes the resolved settings; a work folder belongs to one run."""
    path = workdir / RUN_JSON
    settings = json.loads(json.dumps(dataclasses.asdict(run)))
    if path.exists():
        old = json.loads(path.read_text())
        if changed := sorted(_differences(old, settings)):
            raise ConfigError(
                f"{workdir} holds a run with other settings ({', '.join(changed)}); give another "
                "--workdir or remove it"
            )
        return
    with new_file(path) as partial:  # a kill at this moment leaves no half of it
        partial.write_text(json.dumps(settings, indent=2) + "\n")


def _differences(old: Any, new: Any, name: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield name


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def main() -> int:
    """Runs the command line; errors a user can mend are one line. Gives the exit status."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        command = parse_command_line(sys.argv)
        train(command.run, command.workdir)
    except Kosmos2Error as error:
        if debug:
            raise
        print(f"kosmos2_jax.train: error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"kosmos2_jax.train: {stop}", file=sys.stderr)
        return EXIT_RESTART
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"kosmos2_jax.train: error: {error}; make room on the disk and run the same command "
            "again",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
