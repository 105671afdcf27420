"""Training: `python -m kosmos2_jax.train --config=configs/quickstart.py --workdir=DIR`.

The story of a run: settings, mesh, data, model, state, step, loop.

Exit status: 0 when the run is finished; 1 for an error that a user can mend, told in one line; 75
(EX_TEMPFAIL) when SIGTERM or Ctrl-C stopped it and everything is saved: start it again.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import sys
from pathlib import Path

import jax
import optax
from tqdm import tqdm

from kosmos2_jax.data.skips import MIN_EXAMPLES_TO_STOP
from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.models.lora import with_adapters
from kosmos2_jax.partitioning import batch_sharding, make_mesh
from kosmos2_jax.training.checkpoints import RunCheckpoints
from kosmos2_jax.training.meter import TrainingMeter, data_figures
from kosmos2_jax.training.metric_log import MetricLog
from kosmos2_jax.training.nonfinite import SkippedUpdates
from kosmos2_jax.training.optimizer import make_optimizer, updates_made
from kosmos2_jax.training.progress import say
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.run_data import open_batches, prepare_data, with_vocabulary
from kosmos2_jax.training.run_evaluation import Evaluation, generation_config
from kosmos2_jax.training.settings import parse_command_line
from kosmos2_jax.training.signals import EXIT_RESTART, Interrupted, StopRequest
from kosmos2_jax.training.state import (
    TrainState,
    create_state,
    run_groups,
    state_shardings,
    warm_up,
)
from kosmos2_jax.training.step import make_train_step
from kosmos2_jax.training.task_evaluation import TaskResult
from kosmos2_jax.training.work_folder import record_run, save_model

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
    in `best/` if `run.evaluation.best_metric` says what is good. With LoRA these models have the
    adapters added, which are also in `model_adapter/` and `best_adapter/` alone, as peft's.

    Raises:
      ConfigError: the work folder holds a run with other settings, or no evaluation gives
        `best_metric`.
      CheckpointError: no checkpoint is whole, or one could not be written.
      TrainingError: too many updates were skipped in a row.
      Interrupted: SIGTERM or SIGINT came between the first update and the last. The update under
        way was finished and saved. At any other time the signals end the program as usual.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = make_mesh(run.mesh)

    # Data
    mixture, vocabulary = prepare_data(run, workdir)
    run = with_vocabulary(run, vocabulary)
    record_run(run, workdir)
    batches = open_batches(run, mixture, run.data.batch_size, pack=run.data.pack)

    # Model, state, step
    model = Kosmos2Model(run.model, generation_config(run), run.loss_chunk)
    groups = run_groups(run)
    optimizer = make_optimizer(run.optimizer, groups)
    shardings = state_shardings(run, optimizer, mesh)
    checkpoints = RunCheckpoints(
        workdir / "checkpoints", run.keep_checkpoints, run.evaluation.best_mode
    )
    shapes = jax.eval_shape(lambda: create_state(run, optimizer, shardings))
    done = checkpoints.latest() or 0
    if done:
        state = checkpoints.restore(done, shapes, shardings, batches)
        say(f"going on from update {done}")
    else:
        state = first_state(run, optimizer, shardings, vocabulary)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say(f"{size:,} parameters on {mesh.size} device(s)")
    say(groups.table(run.optimizer.learning_rate, run.optimizer.weight_decay))
    train_step = make_train_step(
        with_adapters(model.loss_fn, run.lora),
        optimizer,
        shardings,
        batch_sharding(mesh),
        run.seed,
        run.micro_batches,
        groups,
        run.ema_decay,
    )

    # Loop
    log = MetricLog(workdir, done)
    evaluation = Evaluation(run, model, vocabulary, log, checkpoints)
    steps = run.optimizer.total_steps
    if run.evaluation.due(done) and 0 < done < steps and not log.evaluated(done):
        evaluation(done, state, run.evaluation.quick_examples)  # the run was stopped before it
    skipped = SkippedUpdates(done - updates_made(state.opt_state), run.max_skipped_updates)
    meter = TrainingMeter(run, skipped, groups)
    bar = tqdm(total=steps, initial=done, unit="update", mininterval=2.0, disable=done == steps)
    with StopRequest() as stop:
        for step in range(done + 1, steps + 1):
            batch = jax.device_put(next(batches), batch_sharding(mesh))
            state, metrics = train_step(state, batch)
            meter.add(metrics)
            bar.update()
            last = step == steps
            if step % run.log_every == 0 or last:
                values = meter.read(step)
                bar.set_postfix(loss=f"{values.get('train/loss', math.nan):.3f}")
                log.write(step, {**values, **data_figures(run, step, batches)})
                skipped.check(step, batch, workdir)
                batches.skips().check(run.data.max_skipped, MIN_EXAMPLES_TO_STOP)
                checkpoints.check()
            with meter.paused():
                evaluating = run.evaluation.due(step) and not last
                if (
                    step % run.checkpoint_every == 0
                    or last
                    or (evaluating and evaluation.finds_best)
                ):
                    checkpoints.save(step, state, batches)
                if evaluating and not stop.signal:
                    evaluation(step, state, run.evaluation.quick_examples)
            if stop.signal and not last:
                checkpoints.save(step, state, batches)
                checkpoints.close()
                raise Interrupted(
                    f"stopped by {stop.signal.name} after update {step}, which is saved; run the "
                    "same command again to go on"
                )
    bar.close()
    if done < steps:
        say(f"read:\n{batches.skips().report()}")
    batches.close()

    save_model(workdir / MODEL_FOLDER, run, vocabulary, state)
    results = evaluation(steps, state, run.evaluation.examples)
    if evaluation.finds_best:
        best = checkpoints.best() or steps
        if best != steps:
            state = checkpoints.restore(best, shapes, shardings)
        save_model(workdir / BEST_FOLDER, run, vocabulary, state)
        say(f"{workdir / BEST_FOLDER} is the model after update {best}")
    checkpoints.close()
    log.close()
    return Trained(run, workdir / MODEL_FOLDER, results)


def first_state(
    run: RunConfig,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    vocabulary: Kosmos2Vocabulary,
) -> TrainState:
    """The state that a run begins with."""
    state = create_state(run, optimizer, shardings)
    if run.warm_start.steps:
        first = run.warm_start
        lessons = open_batches(run, first.task, first.batch_size, pack=False)
        state = warm_up(run, state, shardings, vocabulary, lessons)
        lessons.close()
    return state


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
