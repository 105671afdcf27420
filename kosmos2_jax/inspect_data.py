"""What training will see, as one page: `kosmos2 inspect --config=FILE --output FILE`.

Data are read by the same functions as in `kosmos2_jax.train`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import seqio

from kosmos2_jax.data.packed_pipeline import PackedBatches
from kosmos2_jax.data.skips import Skips
from kosmos2_jax.evaluation.inspection import InspectedRow, inspect_row
from kosmos2_jax.evaluation.inspection_page import InspectionPage, SourceCounts, page_html
from kosmos2_jax.evaluation.inspection_statistics import BatchStatistics
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.run_data import like_checkpoint, open_batches, prepare_data

# Rows that are read at a time; their order does not depend on it.
_BATCH_SIZE = 8
# Scenes that are drawn only to be looked at: the first ones that training would draw.
_FEW_SCENES = 2000


def inspect_data(run: RunConfig, workdir: Path | None, shown: int, counted: int) -> str:
    """Reads the first rows of a run's data and shows them.

    Args:
      run: whose data, as in training.
      workdir: in which the data lie if the run names no folder. None for data that are made for
        this page, no more than it needs, and then removed.
      shown: rows on the page, from the first on.
      counted: rows that the statistics are of, at least; not fewer than are shown.

    Returns:
      A page of HTML.

    Raises:
      ConfigError: the run's settings make no sense.
      DataError: a source is missing or gives nothing.
    """
    counted = max(shown, counted)
    run = like_checkpoint(run)
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            run = run if run.data.folder else _with_few_scenes(run)
        mixture, vocabulary = prepare_data(run, workdir)
        batches = open_batches(run, mixture, min(_BATCH_SIZE, counted), pack=run.data.pack)
        stack.callback(batches.close)
        rows, statistics = _read(run, batches, vocabulary, shown, counted)
        sources = _source_counts(batches.skips(), mixture)
    return page_html(
        InspectionPage(
            mixture, _settings(run), rows, statistics, _rates(mixture), sources,
            vocabulary.grid_size,
        )
    )  # fmt: skip


def _with_few_scenes(run: RunConfig) -> RunConfig:
    few = min(run.data.train_scenes, _FEW_SCENES)
    data = dataclasses.replace(run.data, train_scenes=few, test_scenes=1)
    return dataclasses.replace(run, data=data)


def _read(
    run: RunConfig, batches: PackedBatches, vocabulary: Kosmos2Vocabulary, shown: int, counted: int
) -> tuple[list[InspectedRow], BatchStatistics]:
    num_latents = run.model.resampler.num_latents
    statistics = BatchStatistics(vocabulary, num_latents)
    rows: list[InspectedRow] = []
    for batch in batches:
        tasks = batches.row_tasks()
        statistics.add(batch, tasks)
        for index in range(min(len(tasks), shown - len(rows))):
            rows.append(inspect_row(batch, index, tasks[index], vocabulary, num_latents))
        if len(statistics.filled) >= counted:
            break
    return rows, statistics


def _rates(mixture: str) -> dict[str, float]:
    provider = seqio.get_mixture_or_task(mixture)
    if isinstance(provider, seqio.Task):
        return {provider.name: 1.0}
    return {task.name: float(provider.get_rate(task)) for task in provider.tasks}


def _source_counts(skips: Skips, mixture: str) -> list[SourceCounts]:
    return [
        SourceCounts(
            # What comes of examples after their source has given them.
            f"{source}: examples in rows" if source == mixture else source,
            skips.num_kept(source),
            skips.num_skipped(source),
            skips.reasons(source),
        )
        for source in skips.sources()
    ]


def _settings(run: RunConfig) -> dict[str, str]:
    data, size = run.data, run.model.vision.image_size
    return {
        "row": f"{data.length:,} tokens, {data.images} picture{'s' * (data.images != 1)} at most",
        "packing": "examples share rows" if data.pack else "one example a row",
        "picture": f"{size}×{size} pixels ({data.image_mode}), "
        f"{run.model.resampler.num_latents} slots",
        "grid of locations": f"{run.model.grid_size}×{run.model.grid_size}",
        "update": f"{data.batch_size:,} row{'s' * (data.batch_size != 1)}",
    }
