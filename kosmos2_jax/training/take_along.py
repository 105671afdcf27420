"""What a fine-tuned model is taken along as: a report, and folders ready for the Hugging Face Hub.

`report.md` compares the figures before the first update with those of the model that is left.
`run.export.folder` is a folder that transformers loads, with a model card; of a run with LoRA the
adapter lies beside it, in peft's files, with a card of its own.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import seqio
from etils import epath

from kosmos2_jax.config import XPOS
from kosmos2_jax.data.document_tasks import DocumentSource
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.evaluation.model_card import CardFacts, SourceFacts, model_card
from kosmos2_jax.evaluation.report import comparison, write_report
from kosmos2_jax.interop.convert import convert
from kosmos2_jax.interop.files import (
    ADAPTER_CONFIG_JSON,
    in_bucket,
    new_folder,
    read_json,
    write_json,
)
from kosmos2_jax.training.processes import first_does
from kosmos2_jax.training.progress import say
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.version import __version__

CARD = "README.md"
REPORT = "report.md"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    Attributes:
      model: folder of the model that is left, in our own format.
      step: update that it is of.
      last: last update of the run.
      before: figures before the first update, by name; empty where nobody measured them.
      after: figures of `model`.
    """

    model: epath.Path
    step: int
    last: int
    before: Mapping[str, float]
    after: Mapping[str, float]


def check_export(run: RunConfig, workdir: epath.Path) -> None:
    """Refuses before the first update what could not be exported after the last.

    Raises:
      ConfigError: the work folder is in a bucket, or transformers would compute something else.
    """
    if not run.export.folder:
        return
    if in_bucket(workdir):
        raise ConfigError(
            f"export.folder needs a work folder on a disk, not {workdir}; leave it empty and use "
            "`kosmos2 convert` on a copy of the model"
        )
    if run.model.decoder.position == XPOS:
        raise ConfigError(
            "export.folder is for transformers, which has no xpos positions; leave it empty"
        )


def take_along(run: RunConfig, workdir: epath.Path, outcome: Outcome, mixture: str) -> None:
    """Writes report, model folder and adapter folder, where the run asks for them.

    Args:
      run: its resolved settings.
      workdir: its work folder.
      outcome: what it has come to.
      mixture: that it was trained on, registered.
    """
    if run.evaluation.at_start:
        first_does(lambda: _report(run, workdir, outcome))
    if run.export.folder:
        first_does(lambda: _export(run, workdir, outcome, mixture))


def _report(run: RunConfig, workdir: epath.Path, outcome: Outcome) -> None:
    table = comparison(outcome.before, outcome.after)
    say(f"before and after:\n{table}")
    sheets = {heading: f"sheets/{file}" for heading, file in _sheets(run, workdir, outcome)}
    sections = {"Before and after": f"{_chosen(run, outcome)}\n\n{table}"}
    write_report(workdir / REPORT, "Fine-tuning", {}, sheets, sections)


def _sheets(run: RunConfig, workdir: epath.Path, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Headings and files, below `sheets/`, of the same pictures before and after."""
    for task in run.evaluation.tasks:
        for when, step in (("before", 0), ("after", outcome.step)):
            file = f"{step:07d}/{task}.png"
            if (workdir / "sheets" / file).exists():
                yield f"{task}, {when}", file


def _chosen(run: RunConfig, outcome: Outcome) -> str:
    if not run.evaluation.best_metric:
        return f"The model after update {outcome.step}, the last one."
    return (
        f"The model after update {outcome.step} of {outcome.last}, which was best by "
        f"{run.evaluation.best_metric}."
    )


def _export(run: RunConfig, workdir: epath.Path, outcome: Outcome, mixture: str) -> None:
    folder = Path(workdir / run.export.folder)
    convert(outcome.model, folder, "hf", overwrite=True)
    facts = _facts(run, workdir, outcome, mixture)
    pictures = _copy_sheets(run, workdir, outcome, folder)
    (folder / CARD).write_text(model_card(dataclasses.replace(facts, pictures=pictures)))
    say(f"{folder} is ready for transformers and for the Hugging Face Hub")
    if run.lora.rank:
        adapter = folder.with_name(f"{folder.name}_adapter")
        _export_adapter(run, outcome, adapter, facts)
        say(f"{adapter} is the adapter alone, for peft")


def _copy_sheets(
    run: RunConfig, workdir: epath.Path, outcome: Outcome, folder: Path
) -> dict[str, str]:
    copied = {}
    for heading, file in _sheets(run, workdir, outcome):
        name = heading.replace(", ", "_") + ".png"
        shutil.copyfile(workdir / "sheets" / file, folder / name)
        copied[heading] = name
    return copied


def _export_adapter(run: RunConfig, outcome: Outcome, folder: Path, facts: CardFacts) -> None:
    source = outcome.model.with_name(f"{outcome.model.name}_adapter")
    with new_folder(folder, overwrite=True) as partial:
        for file in source.iterdir():
            shutil.copyfile(file, partial / file.name)
        settings = read_json(partial / ADAPTER_CONFIG_JSON)
        settings["base_model_name_or_path"] = run.export.base_model or None
        write_json(partial / ADAPTER_CONFIG_JSON, settings)
        (partial / CARD).write_text(model_card(dataclasses.replace(facts, is_adapter=True)))


def _facts(run: RunConfig, workdir: epath.Path, outcome: Outcome, mixture: str) -> CardFacts:
    return CardFacts(
        name=run.export.name or workdir.name,
        began_with=run.init_from.path or "initial values",
        base_model=run.export.base_model,
        license=run.export.license,
        sources=list(_sources(mixture, run.evaluation.tasks)),
        recipe=_recipe(run, outcome),
        before=outcome.before,
        after=outcome.after,
        limits=_limits(run),
    )


def _sources(mixture: str, measured: tuple[str, ...]) -> Iterator[SourceFacts]:
    """What was trained on, and what the figures are of."""
    provider = seqio.get_mixture_or_task(mixture)
    tasks = list(getattr(provider, "tasks", [provider]))
    pairs = [(task, "train") for task in tasks]
    pairs += [(seqio.TaskRegistry.get(name), "test") for name in measured]
    seen = set()
    for task, split in pairs:
        folders = task.source.folders if isinstance(task.source, DocumentSource) else ()
        for folder in folders:
            if (folder, split) not in seen:
                seen.add((folder, split))
                yield _source(epath.Path(folder), split)


def _source(folder: epath.Path, split: str) -> SourceFacts:
    """The counts that lie beside the records of a split."""
    described = json.loads((folder / f"{split}.json").read_text())
    counts = described.get("counts", {})
    kept = sum(source["kept"] for source in counts.values()) or described.get("count", 0)
    reasons: dict[str, int] = {}
    for source in counts.values():
        reasons |= source["reasons"]
    return SourceFacts(folder.name, split, kept, reasons)


def _recipe(run: RunConfig, outcome: Outcome) -> dict[str, Any]:
    data, optimizer = run.data, run.optimizer
    mixed = data.mixture or ", ".join(f"{name} {rate:g}" for name, rate in data.rates.items())
    recipe: dict[str, Any] = {
        "began with": run.init_from.path or "initial values",
        "trained": _trained(run),
        "updates": _chosen(run, outcome),
        "rows of an update": f"{data.batch_size} of {data.length:,} tokens",
        "learning rate": f"{optimizer.learning_rate:g}, weight decay {optimizer.weight_decay:g}",
        "mixture, by examples": mixed or data.tasks,
    }
    if data.rehearsal.share:
        recipe["old data mixed in"] = f"{data.rehearsal.share:.0%} of the examples"
    return recipe | {"seed": run.seed, "program": f"kosmos2_jax {__version__}"}


def _trained(run: RunConfig) -> str:
    if run.lora.rank:
        return f"adapters (LoRA) of rank {run.lora.rank} of {run.lora.targets}"
    frozen = [name for name, group in run.optimizer.groups.items() if group.frozen]
    return f"all parameters but {', '.join(frozen)}" if frozen else "all parameters"


def _limits(run: RunConfig) -> list[str]:
    limits = [
        f"Boxes are corners on a grid of {run.model.grid_size} x {run.model.grid_size} cells, and "
        f"pictures are seen at {run.model.vision.image_size} x {run.model.vision.image_size} "
        "pixels: small things are found less well.",
        "It tends to give a phrase a box even if the picture has no such thing.",
        "It knows what its data show and the language they are written in; nothing here measures "
        "anything else.",
    ]
    if run.evaluation.best_metric:
        limits.append(
            f"The update was chosen by {run.evaluation.best_metric} on the data that the scores "
            "are of, which makes these a little too good."
        )
    if not run.data.rehearsal.share:
        limits.append("No old data were mixed in: it may have forgotten what its base could.")
    return limits
