"""A training run as frozen dataclasses: what files in `configs/` build and `train.py` reads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.models.lora import LoraConfig
from kosmos2_jax.partitioning import every_axis
from kosmos2_jax.ranges import COUNT, Range, check_ranges
from kosmos2_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured while training and at its end.

    Attributes:
      tasks: seqio tasks with metrics.
      every: updates between evaluations on `quick_examples`; 0 for only at the end.
      at_start: whether `examples` are measured before the first update too, to compare with.
      quick_examples: examples a task while training.
      examples: examples a task at the end; 0 for all.
      batch_size: rows at a time.
      max_new_tokens: tokens written at most.
      best_metric: name of a metric of the tasks, as "rec_accuracy"; the checkpoint where it is
        best is kept beside the latest, and its model exported as `best` at the end. Empty for
        none.
      best_mode: "max" or "min", which values of it are good.
      patience: so many evaluations in a row that are not better than the best one end the run; 0
        for none.
      loss_mixture: mixture or task whose targets are predicted one by one, for "loss", "accuracy"
        and their kinds; empty for none.
      loss_split: which split of it; tasks without it are left out.
      loss_rows: rows of it, the first ones.
    """

    tasks: tuple[str, ...] = ()
    every: int = 0
    at_start: bool = False
    quick_examples: int = 256
    examples: int = 0
    batch_size: int = 64
    max_new_tokens: int = 16
    best_metric: str = ""
    best_mode: str = "max"
    patience: int = 0
    loss_mixture: str = ""
    loss_split: str = "validation"
    loss_rows: int = 256

    def __post_init__(self) -> None:
        if self.best_mode not in ("max", "min"):
            raise ConfigError(f"evaluation.best_mode must be max or min, not {self.best_mode!r}")
        if self.best_metric and not (self.measures and self.every):
            raise ConfigError(
                f"evaluation.best_metric {self.best_metric!r} needs evaluation.tasks or "
                "evaluation.loss_mixture, and evaluation.every above 0"
            )
        if self.patience < 0 or (self.patience and not self.best_metric):
            raise ConfigError(
                f"evaluation.patience {self.patience} must be 0, or above it with "
                "evaluation.best_metric to wait for"
            )
        check_ranges({"loss_rows": COUNT}, vars(self), "evaluation.")

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.tasks or self.loss_mixture)

    def due(self, step: int) -> bool:
        """Whether there is an evaluation after update `step`, unless it is the last one."""
        return bool(self.measures and self.every) and step % self.every == 0


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """For models without pretrained parts: a short first training of the vision tower.

    See `training/vision_warm_start.py`, and `models/grounded_init.py` for the initial values of
    the other parts, which follow from it.

    Attributes:
      steps: updates; 0 for none, and the reference's initial values.
      task: seqio task or mixture whose grounded phrases teach it.
      batch_size: rows of one update.
      learning_rate: its peak; the rate falls to 0 at the end.
    """

    steps: int = 0
    task: str = "quickstart_seeing"
    batch_size: int = 16
    learning_rate: float = 3e-3


@dataclasses.dataclass(frozen=True)
class InitFromConfig:
    """A checkpoint whose values a run begins with; see `kosmos2_jax.training.init_from`.

    Attributes:
      path: a Hugging Face folder, a fairseq `.pt` file, a folder of ours, or CLIP's vision tower
        (a Hugging Face folder, `.safetensors`, or a torch file); empty for initial values.
      architecture: whether the run's model is the checkpoint's: its sizes, its positions, its
        tokenizer where the data name none, and how it decodes. What says how the model is computed
        (dtype, attention, remat, scan_layers, dropout, vocab_multiple) stays the run's.
      assignments: (pattern, replacement) pairs of regular expressions over our paths of
        parameters, as `vision/position_embedding`: the first whose pattern matches a whole path
        says where in the checkpoint its value is found; an empty replacement leaves it at its
        initial value. A path that none matches is found under its own name.
      allow_missing: regular expression of paths that may stay at their initial values because the
        checkpoint lacks them; ".*" for all, empty for none.
    """

    path: str = ""
    architecture: bool = False
    assignments: tuple[tuple[str, str], ...] = ()
    allow_missing: str = ""

    def __post_init__(self) -> None:
        if self.architecture and not self.path:
            raise ConfigError("init_from.architecture needs a checkpoint: set init_from.path")
        for pattern in (self.allow_missing, *(pair[0] for pair in self.assignments)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"init_from: {pattern!r} is no regular expression ({error})"
                ) from None


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What a run leaves for others; see `kosmos2_jax.training.take_along`.

    Attributes:
      folder: below the work folder, for a Hugging Face folder with a model card, of the best model
        where there is one; adapters go beside it, as `FOLDER_adapter`. Empty for none.
      name: of the model, on its card; empty for that of the work folder.
      base_model: name on the Hugging Face Hub of what the run began with; empty where it has none.
      license: of the new model, by its identifier on the Hub, as "mit"; empty for not said.
    """

    folder: str = ""
    name: str = ""
    base_model: str = ""
    license: str = ""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
      model: architecture; a vocabulary size of 0 takes that of the data's tokenizer.
      optimizer: optimiser, schedule and number of updates.
      data: what is read.
      evaluation: what is measured.
      mesh: devices along each mesh axis, see `kosmos2_jax.partitioning.make_mesh`; 1 along those
        that are not named.
      seed: of initial values, dropout and the order of the data.
      init_from: a checkpoint to begin with.
      export: what is left for others.
      warm_start: a first training of the vision tower, where there is no checkpoint.
      lora: adapters of linear layers, which are then all that is trained.
      ema_decay: after each update, the average of the trained parameters becomes `ema_decay` times
        itself plus the rest of the new ones; it begins as the initial values. Evaluation and the
        exported model use it. 0 for no average.
      micro_batches: parts that a batch is worked through in, one after the other; the loss stays
        the mean over all tokens of the update.
      loss_chunk: tokens of a row whose logits are held at a time; 0 for all. Saves memory where
        rows are long and the vocabulary is large.
      log_every: updates between lines of metrics.
      checkpoint_every: updates between checkpoints.
      keep_checkpoints: how many of the latest stay.
      max_skipped_updates: so many updates in a row whose loss or gradient is not finite stop the
        run; noticed when metrics are written, every `log_every` updates.
      profile_steps: first and last update of a trace in `profile/` of the work folder; empty for
        none.
      wandb_project: of Weights & Biases, which gets the metrics too; empty for none.
      no_repeat_ngram_size: of the generation settings stored with the model; 0 for none.
    """

    model: Kosmos2Config = Kosmos2Config()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"data": -1})
    seed: int = 0
    init_from: InitFromConfig = InitFromConfig()
    export: ExportConfig = ExportConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    lora: LoraConfig = LoraConfig()
    ema_decay: float = 0.0
    micro_batches: int = 1
    loss_chunk: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    max_skipped_updates: int = 10
    profile_steps: tuple[int, ...] = ()
    wandb_project: str = ""
    no_repeat_ngram_size: int = 3

    def __post_init__(self) -> None:
        # All of them, so that each can be set on the command line and a misspelt one is told.
        object.__setattr__(self, "mesh", every_axis(self.mesh))
        counts = (
            "micro_batches",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "max_skipped_updates",
        )
        decay = {"ema_decay": Range(least=0, below=1)}
        check_ranges(dict.fromkeys(counts, COUNT) | decay, vars(self))
        if self.init_from.path and self.warm_start.steps:
            raise ConfigError(
                "init_from.path and warm_start.steps exclude each other: a checkpoint has a "
                "trained vision tower already"
            )
        if self.lora.rank and self.warm_start.steps:
            raise ConfigError(
                "lora.rank keeps the values that a model has, and warm_start.steps makes new ones; "
                "set one of them to 0"
            )
        steps = tuple(self.profile_steps)
        if steps and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
            raise ConfigError(
                f"profile_steps must be empty or the first and the last update, not {steps}"
            )
        if self.data.batch_size % self.micro_batches:
            raise ConfigError(
                f"data.batch_size {self.data.batch_size} is not a multiple of micro_batches "
                f"{self.micro_batches}"
            )


@dataclasses.dataclass(frozen=True)
class EvaluationRun:
    """An evaluation of a finished model, see `kosmos2_jax.evaluate`.

    Attributes:
      checkpoint: a folder or file of any format that `kosmos2_jax.interop.convert.load` reads.
      tokenizer: its files, where the checkpoint lacks them.
      data: where the tasks' data lie; `tasks`, `folder`, and what encoding needs.
      evaluation: what is measured; `tasks` empty for all benchmarks that are there; `examples` a
        task, 0 for all.
      predictions: a folder of predictions that were saved before, `TASK.jsonl`, which are scored
        without asking the model; empty to ask it.
      split: of the tasks.
      mesh: see `RunConfig`.
      dtype: of activations.
      seed: of what is left to chance in encoding, and of demonstrations.
    """

    checkpoint: str = ""
    tokenizer: str = ""
    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    predictions: str = ""
    split: str = "test"
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"data": -1})
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mesh", every_axis(self.mesh))  # as of `RunConfig`
