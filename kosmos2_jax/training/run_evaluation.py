"""The evaluations of a run, while it trains and at its end."""

from __future__ import annotations

import dataclasses

from etils import epath

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.training.checkpoints import RunCheckpoints
from kosmos2_jax.training.loss_evaluation import LossEvaluation
from kosmos2_jax.training.metric_log import MetricLog
from kosmos2_jax.training.progress import say
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.sheets import write_sheets
from kosmos2_jax.training.state import TrainState, model_params
from kosmos2_jax.training.task_evaluation import TaskEvaluation
from kosmos2_jax.training.task_scoring import TaskResult


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The evaluations of a run: written to the log, and noted where the best checkpoint is kept.

    Attributes:
      run: its settings.
      tasks: answers the tasks and scores them.
      log: gets the figures.
      checkpoints: which are told how good each was.
      sheets: folder that gets a folder of pictures for each evaluation, by its update.
      losses: measures by loss, if the run asks for it.
      found: figures by update, of this start of the run.
    """

    run: RunConfig
    tasks: TaskEvaluation
    log: MetricLog
    checkpoints: RunCheckpoints
    sheets: epath.Path
    losses: LossEvaluation | None = None
    found: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.finds_best:
            for step, figure in self.log.former(f"eval/{self.run.evaluation.best_metric}").items():
                self._note(step, figure)

    @property
    def finds_best(self) -> bool:
        """Whether the best checkpoint is kept."""
        return bool(self.run.evaluation.best_metric)

    @property
    def is_hopeless(self) -> bool:
        """Whether the run has waited long enough for something better than its best."""
        patience = self.run.evaluation.patience
        return bool(patience) and self.checkpoints.stale() >= patience

    def figures(self, step: int) -> dict[str, float]:
        """What was measured after `step`, now or by an earlier start of the run."""
        return self.found.get(step) or self.log.evaluation(step)

    def __call__(
        self, step: int, state: TrainState, limit: int, *, is_best: bool = False
    ) -> dict[str, TaskResult]:
        """Measures the model after `step` on at most `limit` examples a task, 0 for all.

        With `is_best` it is measured once more, when it has been found to be the best: these
        figures are logged as "best/NAME" and not compared with others.

        Raises:
          ConfigError: `best_metric` is not among the figures.
        """
        run = self.run
        if not run.evaluation.measures:
            return {}
        params = model_params(run, state)
        figures = self.losses(params) if self.losses else {}
        results = self.tasks(params, limit)
        figures |= {name: value for r in results.values() for name, value in r.metrics.items()}
        self.found[step] = figures
        kind = "best" if is_best else "eval"
        self.log.write(step, {f"{kind}/{name}": value for name, value in figures.items()})
        if results:
            write_sheets(results, self.sheets / f"{step:07d}")
        say(f"update {step}: " + ", ".join(f"{n} {v:.3f}" for n, v in figures.items()))
        if self.finds_best and not is_best:
            if run.evaluation.best_metric not in figures:
                raise ConfigError(
                    f"evaluation.best_metric {run.evaluation.best_metric!r} is not among what "
                    f"is measured: {', '.join(sorted(figures))}"
                )
            self._note(step, figures[run.evaluation.best_metric])
        return results

    def _note(self, step: int, figure: float) -> None:
        if step:  # what the run began with has no checkpoint
            self.checkpoints.note(step, figure)
