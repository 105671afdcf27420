"""Training: `python -m kosmos2_jax.train --config=configs/quickstart.py --workdir=DIR`.

The story of a run: settings, mesh, data, model, state, step, loop. Several processes tell it
together, see `kosmos2_jax.training.processes`.

Exit status: 0 when the run is finished; 1 for an error that a user can mend, told in one line; 75
(EX_TEMPFAIL) when SIGTERM or Ctrl-C stopped it and everything is saved: start it again.
"""

from __future__ import annotations

if __name__ == "__main__":  # before JAX is imported, which takes seconds
    from kosmos2_jax.startup import prepare_environment
    from kosmos2_jax.training.usage import answer_help

    answer_help("train", __doc__)
    prepare_environment()

import dataclasses
import signal
from collections.abc import Callable, Mapping

import jax
import optax
from etils import epath
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.packed_pipeline import PackedBatches
from kosmos2_jax.data.skips import MIN_EXAMPLES_TO_STOP, NewReasons
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.interop.names import num_parameters
from kosmos2_jax.models.lora import join_adapters, split_adapters
from kosmos2_jax.partitioning import batch_sharding, check_mesh, make_mesh
from kosmos2_jax.training.checkpoints import RunCheckpoints
from kosmos2_jax.training.environment import record_environment
from kosmos2_jax.training.init_from import init_params
from kosmos2_jax.training.loss_evaluation import LossEvaluation
from kosmos2_jax.training.meter import TrainingMeter, progress
from kosmos2_jax.training.metric_log import MetricLog
from kosmos2_jax.training.nonfinite import SkippedUpdates
from kosmos2_jax.training.optimizer import updates_made
from kosmos2_jax.training.processes import (
    DataShard,
    StopAgreement,
    data_shard,
    global_batch,
    is_first,
    run_program,
)
from kosmos2_jax.training.profiling import Profiler
from kosmos2_jax.training.program import run_story
from kosmos2_jax.training.progress import say
from kosmos2_jax.training.read_so_far import ReadSoFar
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.run_data import (
    like_checkpoint,
    open_batches,
    prepare_data,
    with_vocabulary,
)
from kosmos2_jax.training.run_evaluation import Evaluation
from kosmos2_jax.training.run_step import make_run_step
from kosmos2_jax.training.signals import Interrupted, StopRequest
from kosmos2_jax.training.state import TrainState, create_state, warm_up, with_params
from kosmos2_jax.training.take_along import Outcome, check_export, take_along
from kosmos2_jax.training.task_evaluation import TaskEvaluation
from kosmos2_jax.training.task_ids import task_names, with_task_ids
from kosmos2_jax.training.task_scoring import TaskResult
from kosmos2_jax.training.work_folder import open_work_folder, record_run, save_model

MODEL_FOLDER = "model"
BEST_FOLDER = "best"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run leaves.

    Attributes:
      run: its resolved settings.
      model: folder of the model after the last update, in our own checkpoint format.
      results: of its evaluation, by task.
      best: folder of the best model; `model` where the run does not look for it.
      best_results: of its evaluation.
    """

    run: RunConfig
    model: epath.Path
    results: dict[str, TaskResult]
    best: epath.Path
    best_results: dict[str, TaskResult]


def train(run: RunConfig, workdir: epath.PathLike) -> Trained:
    """Trains `run` in `workdir`, going on from its last whole checkpoint if there is one.

    `workdir` is a folder on a disk or, as gs://BUCKET/FOLDER, in a bucket.

    Leaves `run.json` (the resolved settings), `environment.jsonl`, `metrics.jsonl`, TensorBoard's
    files, `sheets/` of pictures, `checkpoints/`, and the trained model in our own checkpoint
    format, in `model/`; the best one in `best/` if `run.evaluation.best_metric` says what is good.
    With LoRA these models have the adapters added, which are also in `model_adapter/` and
    `best_adapter/` alone, as peft's. With `run.evaluation.at_start` there is a `report.md` of the
    figures before and after; for `run.export` see `kosmos2_jax.training.take_along`.

    Raises:
      ConfigError: the work folder holds a run with other settings, or no evaluation gives
        `best_metric`.
      CheckpointError: no checkpoint is whole, or one could not be written.
      TrainingError: too many updates were skipped in a row, or a bucket cannot be written to.
      Interrupted: SIGTERM or SIGINT came between the first update and the last, to any of the
        processes. The update under way was finished and saved. At any other time the signals end
        the program as usual.
    """
    run = like_checkpoint(run)
    mesh = make_mesh(run.mesh)
    check_mesh(mesh, run.model, run.data.batch_size, run.micro_batches)
    with jax.set_mesh(mesh):  # the model places its activations by it
        return _train_on(mesh, run, open_work_folder(workdir))


def _train_on(mesh: Mesh, run: RunConfig, workdir: epath.Path) -> Trained:
    rows = batch_sharding(mesh)
    shard = data_shard(rows, run.data.batch_size)

    # Data
    check_export(run, workdir)
    mixture, vocabulary = prepare_data(run, workdir)
    run = with_vocabulary(run, vocabulary)
    record_run(run, workdir)
    record_environment(workdir)
    batches = open_batches(run, mixture, run.data.batch_size, shard, pack=run.data.pack)

    # Model, state, step
    tasks = task_names(mixture)
    made = make_run_step(run, mesh, len(tasks))
    checkpoints = RunCheckpoints(
        workdir / "checkpoints",
        run.keep_checkpoints,
        run.evaluation.best_mode,
        keeps_place=shard.is_keeper,
    )
    done = checkpoints.latest() or 0
    if done:
        state = checkpoints.restore(done, made.shapes, made.shardings, batches)
        say(f"going on from update {done}")
    else:
        state = first_state(run, made.optimizer, made.shardings, vocabulary)
    say(f"{num_parameters(run.model):,} parameters on {mesh.size} device(s)")
    say(made.groups.table(run.optimizer.learning_rate, run.optimizer.weight_decay))

    # Loop
    log = MetricLog(workdir, done, run.wandb_project, dataclasses.asdict(run))
    by_loss = run.evaluation.loss_mixture
    losses = LossEvaluation(run, made.model, rows, shard) if by_loss else None
    lengths = feature_lengths(run.data.length, run.data.images)
    asked = TaskEvaluation(made.model, vocabulary, run.evaluation, lengths, rows)
    evaluation = Evaluation(run, asked, log, checkpoints, workdir / "sheets", losses)
    skipped = SkippedUpdates(done - updates_made(state.opt_state), run.max_skipped_updates)
    meter = TrainingMeter(run, skipped, made.groups, tasks)
    loop = _Loop(
        run, workdir, batches, tasks, rows, shard, made.update, checkpoints, log, evaluation, meter
    )
    if run.evaluation.at_start and not done:
        evaluation(0, state, run.evaluation.examples)
    state, last = loop(state, done)
    batches.close()

    # What is left behind
    model = best = workdir / MODEL_FOLDER
    save_model(model, run, vocabulary, state)
    results = best_results = evaluation(last, state, run.evaluation.examples)
    step = last
    if evaluation.finds_best:
        best, step = workdir / BEST_FOLDER, checkpoints.best() or last
        if step != last:
            state = checkpoints.restore(step, made.shapes, made.shardings)
            best_results = evaluation(step, state, run.evaluation.examples, is_best=True)
        save_model(best, run, vocabulary, state)
        say(f"{best} is the model after update {step}")
    checkpoints.close()
    log.close()
    outcome = Outcome(best, step, last, evaluation.figures(0), evaluation.figures(step))
    take_along(run, workdir, outcome, mixture)
    return Trained(run, model, results, best, best_results)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The updates of a run, and what is due between them; attributes are as in `_train_on`."""

    run: RunConfig
    workdir: epath.Path
    batches: PackedBatches
    tasks: tuple[str, ...]
    rows: NamedSharding
    shard: DataShard
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    checkpoints: RunCheckpoints
    log: MetricLog
    evaluation: Evaluation
    meter: TrainingMeter

    def __call__(self, state: TrainState, done: int) -> tuple[TrainState, int]:
        """The state after the last update and its number, from the state after `done` of them.

        With `evaluation.patience` it may be another one than the settings say.
        """
        run, steps = self.run, self.run.optimizer.total_steps
        if run.evaluation.due(done) and 0 < done < steps and not self.log.evaluated(done):
            # The run was stopped before it.
            self.evaluation(done, state, run.evaluation.quick_examples)
        if self.evaluation.is_hopeless:
            return state, done
        begun = done < steps
        hidden = not begun or not is_first()
        bar = tqdm(total=steps, initial=done, unit="update", mininterval=2.0, disable=hidden)
        agree, profiler = StopAgreement(self.rows.mesh), Profiler(self.workdir, run.profile_steps)
        reasons = NewReasons(ReadSoFar.of(self.batches, self.shard).skips)
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
                    self._report(step, values, reasons)
                    self.meter.skipped.check(step, batch, self.workdir)
                with self.meter.paused():
                    self._between(step, state, stopping)
                done = step
                if self.evaluation.is_hopeless:
                    say(f"update {step}: no better than before for long enough; the run ends here")
                    break
        bar.close()
        if begun:
            say(f"read:\n{ReadSoFar.of(self.batches, self.shard).skips.report()}")
        return state, done

    def _report(self, step: int, values: Mapping[str, float], reasons: NewReasons) -> None:
        """Writes metrics, and stops the run where the data or the disk fail it."""
        read = ReadSoFar.of(self.batches, self.shard)
        for line in reasons.lines(read.skips):
            say(f"data: {line}")
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
            self._save(step, state)
        if evaluating and not stopping:
            self.evaluation(step, state, run.evaluation.quick_examples)
        if stopping and not last:
            self._save(step, state)
            self.checkpoints.close()
            raise Interrupted(
                f"stopped by {stopping.name} after update {step}, which is saved; run the same "
                "command again to go on"
            )

    def _save(self, step: int, state: TrainState) -> None:
        self.log.flush()
        self.checkpoints.save(step, state, self.batches)


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
    return run_story("kosmos2_jax.train", RunConfig, train)


if __name__ == "__main__":
    run_program(main)
