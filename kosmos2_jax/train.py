"""Training: `python -m kosmos2_jax.train --config=configs/quickstart.py --workdir=DIR`.

The story of a run: settings, mesh, data, model, state, step, loop. Several processes tell it
together, see `kosmos2_jax.training.processes`.

Exit status: 0 when the run is finished; 1 for an error that a user can mend, told in one line; 75
(EX_TEMPFAIL) when SIGTERM or Ctrl-C stopped it and everything is saved: start it again.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from kosmos2_jax.data.packed_pipeline import PackedBatches
from kosmos2_jax.data.skips import MIN_EXAMPLES_TO_STOP
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.interop.names import num_parameters
from kosmos2_jax.models.lora import join_adapters, split_adapters, with_adapters
from kosmos2_jax.partitioning import batch_sharding, check_mesh, make_mesh
from kosmos2_jax.training.checkpoints import RunCheckpoints
from kosmos2_jax.training.environment import record_environment
from kosmos2_jax.training.host_memory import keep_memory
from kosmos2_jax.training.init_from import init_params
from kosmos2_jax.training.loss_evaluation import LossEvaluation
from kosmos2_jax.training.meter import TrainingMeter, progress
from kosmos2_jax.training.metric_log import MetricLog
from kosmos2_jax.training.nonfinite import SkippedUpdates
from kosmos2_jax.training.optimizer import make_optimizer, updates_made
from kosmos2_jax.training.processes import (
    DataShard,
    StopAgreement,
    data_shard,
    global_batch,
    is_first,
    run_program,
    start_processes,
)
from kosmos2_jax.training.profiling import Profiler
from kosmos2_jax.training.program import run_story
from kosmos2_jax.training.progress import say
from kosmos2_jax.training.read_so_far import ReadSoFar
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.run_data import open_batches, prepare_data, with_vocabulary
from kosmos2_jax.training.run_evaluation import Evaluation, generation_config
from kosmos2_jax.training.settings import parse_command_line
from kosmos2_jax.training.signals import Interrupted, StopRequest
from kosmos2_jax.training.state import (
    TrainState,
    create_state,
    run_groups,
    state_shardings,
    warm_up,
    with_params,
)
from kosmos2_jax.training.step import make_train_step
from kosmos2_jax.training.task_evaluation import TaskResult
from kosmos2_jax.training.task_ids import task_names, with_task_ids
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

    Leaves `run.json` (the resolved settings), `environment.jsonl`, `metrics.jsonl`, TensorBoard's
    files, `sheets/` of pictures, `checkpoints/`, and the trained model in our own checkpoint
    format, in `model/`; the best one in `best/` if `run.evaluation.best_metric` says what is good.
    With LoRA these models have the adapters added, which are also in `model_adapter/` and
    `best_adapter/` alone, as peft's.

    Raises:
      ConfigError: the work folder holds a run with other settings, or no evaluation gives
        `best_metric`.
      CheckpointError: no checkpoint is whole, or one could not be written.
      TrainingError: too many updates were skipped in a row.
      Interrupted: SIGTERM or SIGINT came between the first update and the last, to any of the
        processes. The update under way was finished and saved. At any other time the signals end
        the program as usual.
    """
    mesh = make_mesh(run.mesh)
    check_mesh(mesh, run.model, run.data.batch_size, run.micro_batches)
    with jax.set_mesh(mesh):  # the model places its activations by it
        return _train_on(mesh, run, workdir)


def _train_on(mesh: Mesh, run: RunConfig, workdir: Path) -> Trained:
    workdir.mkdir(parents=True, exist_ok=True)
    rows = batch_sharding(mesh)
    shard = data_shard(rows, run.data.batch_size)

    # Data
    mixture, vocabulary = prepare_data(run, workdir)
    run = with_vocabulary(run, vocabulary)
    record_run(run, workdir)
    record_environment(workdir)
    batches = open_batches(run, mixture, run.data.batch_size, shard, pack=run.data.pack)

    # Model, state, step
    tasks = task_names(mixture)
    model = Kosmos2Model(run.model, generation_config(run), run.loss_chunk, len(tasks))
    groups = run_groups(run)
    optimizer = make_optimizer(run.optimizer, groups)
    shardings = state_shardings(run, optimizer, mesh)
    checkpoints = RunCheckpoints(
        workdir / "checkpoints",
        run.keep_checkpoints,
        run.evaluation.best_mode,
        keeps_place=shard.is_keeper,
    )
    shapes = jax.eval_shape(lambda: create_state(run, optimizer, shardings))
    done = checkpoints.latest() or 0
    if done:
        state = checkpoints.restore(done, shapes, shardings, batches)
        say(f"going on from update {done}")
    else:
        state = first_state(run, optimizer, shardings, vocabulary)
    say(f"{num_parameters(run.model):,} parameters on {mesh.size} device(s)")
    say(groups.table(run.optimizer.learning_rate, run.optimizer.weight_decay))
    train_step = make_train_step(
        with_adapters(model.loss_fn, run.lora),
        optimizer,
        shardings,
        rows,
        run.seed,
        run.micro_batches,
        groups,
        run.ema_decay,
    )

    # Loop
    log = MetricLog(workdir, done, run.wandb_project, dataclasses.asdict(run))
    losses = LossEvaluation(run, model, rows, shard) if run.evaluation.loss_mixture else None
    evaluation = Evaluation(run, model, vocabulary, log, checkpoints, workdir / "sheets", losses)
    skipped = SkippedUpdates(done - updates_made(state.opt_state), run.max_skipped_updates)
    meter = TrainingMeter(run, skipped, groups, tasks)
    loop = _Loop(
        run, workdir, batches, tasks, rows, shard, train_step, checkpoints, log, evaluation, meter
    )
    state = loop(state, done)
    batches.close()

    # What is left behind
    save_model(workdir / MODEL_FOLDER, run, vocabulary, state)
    steps = run.optimizer.total_steps
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


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The updates of a run, and what is due between them; attributes are as in `_train_on`."""

    run: RunConfig
    workdir: Path
    batches: PackedBatches
    tasks: tuple[str, ...]
    rows: NamedSharding
    shard: DataShard
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    checkpoints: RunCheckpoints
    log: MetricLog
    evaluation: Evaluation
    meter: TrainingMeter

    def __call__(self, state: TrainState, done: int) -> TrainState:
        """The state after the last update, from the one after `done` of them."""
        run, steps = self.run, self.run.optimizer.total_steps
        if run.evaluation.due(done) and 0 < done < steps and not self.log.evaluated(done):
            # The run was stopped before it.
            self.evaluation(done, state, run.evaluation.quick_examples)
        hidden = done == steps or not is_first()
        bar = tqdm(total=steps, initial=done, unit="update", mininterval=2.0, disable=hidden)
        agree, profiler = StopAgreement(self.rows.mesh), Profiler(self.workdir, run.profile_steps)
        with StopRequest() as stop:
            for step in range(done + 1, steps + 1):
                with self.meter.waiting():
                    batch = next(self.batches)
                batch = with_task_ids(batch, self.batches.row_tasks(), self.tasks)
                profiler.before(step)
                state, metrics = self.train_step(state, global_batch(batch, self.rows))
                profiler.after(step, metrics)
                stopping = agree(stop.signal)
                self.meter.add(metrics)
                bar.update()
                last = step == steps
                if step % run.log_every == 0 or last:
                    values = self.meter.read(step)
                    bar.set_postfix(progress(values))
                    self._report(step, values)
                    self.meter.skipped.check(step, batch, self.workdir)
                with self.meter.paused():
                    self._between(step, state, stopping)
        bar.close()
        if done < steps:
            say(f"read:\n{ReadSoFar.of(self.batches, self.shard).skips.report()}")
        return state

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        """Writes metrics, and stops the run where the data or the disk fail it."""
        read = ReadSoFar.of(self.batches, self.shard)
        self.log.write(step, {**values, **read.figures(self.run, step)})
        read.skips.check(self.run.data.max_skipped, MIN_EXAMPLES_TO_STOP)
        self.checkpoints.check()

    def _between(self, step: int, state: TrainState, stopping: signal.Signals | None) -> None:
        """Saves and evaluates after an update where it is time to.

        Raises:
          Interrupted: the run is to stop.
        """
        run, last = self.run, step == self.run.optimizer.total_steps
        evaluating = run.evaluation.due(step) and not last
        finding = evaluating and self.evaluation.finds_best
        if step % run.checkpoint_every == 0 or last or finding:
            self.checkpoints.save(step, state, self.batches)
        if evaluating and not stopping:
            self.evaluation(step, state, run.evaluation.quick_examples)
        if stopping and not last:
            self.checkpoints.save(step, state, self.batches)
            self.checkpoints.close()
            raise Interrupted(
                f"stopped by {stopping.name} after update {step}, which is saved; run the same "
                "command again to go on"
            )


def first_state(
    run: RunConfig,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    vocabulary: Kosmos2Vocabulary,
) -> TrainState:
    """The state that a run begins with: initial values, a checkpoint's, or a warm start's."""
    state = create_state(run, optimizer, shardings)
    if run.init_from.path:
        model, adapters = split_adapters(state.params)
        model, report = init_params(model, run.model, vocabulary, run.init_from)
        say(f"{report}")
        state = with_params(run, state, join_adapters(model, adapters))
    if run.warm_start.steps:
        first = run.warm_start
        lessons = open_batches(run, first.task, first.batch_size, pack=False)
        state = warm_up(run, state, shardings, vocabulary, lessons)
        lessons.close()
    return state


def main() -> int:
    """Runs the command line; errors a user can mend are one line. Gives the exit status."""

    def story() -> None:
        command = parse_command_line(sys.argv)
        if command.processes:
            start_processes(command.processes)
        else:
            keep_memory()
        train(command.run, command.workdir)

    return run_story("kosmos2_jax.train", story)


if __name__ == "__main__":
    run_program(main)
