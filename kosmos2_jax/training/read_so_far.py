"""What a run has read, by all its processes together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from kosmos2_jax.data.packed_pipeline import PackedBatches
from kosmos2_jax.data.skips import Skips
from kosmos2_jax.training.processes import DataShard, gather
from kosmos2_jax.training.run_config import RunConfig


@dataclasses.dataclass(frozen=True)
class ReadSoFar:
    """Counts since the beginning of the run.

    Attributes:
      tasks: by name of a task, its examples and their tokens.
      skips: what was kept, skipped and blanked.
    """

    tasks: Mapping[str, tuple[int, int]]
    skips: Skips

    @classmethod
    def of(cls, batches: PackedBatches, shard: DataShard) -> ReadSoFar:
        """Adds up what all processes have read; all of them call it."""
        mine = [batches.tasks(), batches.skips().to_dict()] if shard.is_keeper else [{}, {}]
        tasks: dict[str, tuple[int, int]] = {}
        skips = Skips()
        for its_tasks, its_skips in gather(mine):
            for task, (examples, tokens) in its_tasks.items():
                so_far = tasks.get(task, (0, 0))
                tasks[task] = (so_far[0] + examples, so_far[1] + tokens)
            skips.merge(Skips.from_dict(its_skips))
        return cls(tasks, skips)

    def figures(self, run: RunConfig, step: int) -> dict[str, float]:
        """Proportions, fullness of rows, and what was skipped, in the first `step` updates."""
        examples, tokens = (sum(column) for column in zip(*self.tasks.values(), strict=True))
        values = {"data/fill": tokens / (step * run.data.batch_size * run.data.length)}
        for task, (its_examples, its_tokens) in sorted(self.tasks.items()):
            values[f"data/examples/{task}"] = its_examples / examples
            values[f"data/tokens/{task}"] = its_tokens / tokens
        for source in self.skips.sources():
            if skipped := self.skips.num_skipped(source):
                values[f"data/skipped/{source}"] = float(skipped)
            for reason, n in self.skips.reasons(source).items():
                values[f"data/reasons/{source}/{reason}"] = float(n)
        return values
