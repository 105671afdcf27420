"""What a run leaves in its work folder beside metrics and checkpoints: its settings, its model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.interop.checkpoint import NO_REPEAT_NGRAM_SIZE
from kosmos2_jax.interop.files import as_path, in_bucket, new_file, told_of_bucket
from kosmos2_jax.interop.layout import unstack_layers
from kosmos2_jax.interop.orbax_io import save_folder
from kosmos2_jax.interop.peft import write_adapter
from kosmos2_jax.models.lora import split_adapters
from kosmos2_jax.training.processes import first_does, host_values
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.state import TrainState, averaged_params, model_params

RUN_JSON = "run.json"
_TRIAL = "may-be-removed"


def open_work_folder(workdir: epath.PathLike) -> epath.Path:
    """The folder, made if it is missing; in a bucket, process 0 tries to write and to delete.

    Raises:
      TrainingError: the bucket is missing, or that may not be done in it.
    """
    workdir = as_path(workdir)
    if in_bucket(workdir):
        first_does(lambda: _try(workdir / _TRIAL))
    else:
        workdir.mkdir(parents=True, exist_ok=True)
    return workdir


def _try(file: epath.Path) -> None:
    with told_of_bucket(file.parent):
        file.write_text("")
        file.unlink()


def record_run(run: RunConfig, workdir: epath.Path) -> None:
    """Writes the resolved settings; a work folder belongs to one run, on whatever mesh.

    Raises:
      ConfigError: it holds a run with other settings.
    """
    first_does(lambda: keep_settings(workdir / RUN_JSON, dataclasses.asdict(run), ("mesh",)))


def keep_settings(path: epath.Path, settings: Mapping[str, Any], may_change: Sequence[str]) -> None:
    """Writes settings as JSON; process 0 alone does.

    Args:
      path: of the file.
      settings: what JSON can hold.
      may_change: names, as "data.folder", of what may be another value than in the file.

    Raises:
      ConfigError: the file holds others.
    """
    settings = json.loads(json.dumps(settings))
    if path.exists():
        old = json.loads(path.read_text())
        changed = sorted(set(_differences(old, settings)))
        kept = [name for name in changed if not _within(name, may_change)]
        if kept:
            raise ConfigError(
                f"{path.parent} holds a run with other settings ({', '.join(kept)}); give "
                "another --workdir or remove it"
            )
        if not changed:
            return
    with new_file(path, overwrite=True) as partial:  # a kill at this moment leaves no half of it
        partial.write_text(json.dumps(settings, indent=2) + "\n")


def _within(name: str, groups: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{group}.") for group in groups)


def _differences(old: Any, new: Any, name: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield name


def save_model(
    folder: epath.Path, run: RunConfig, vocabulary: Kosmos2Vocabulary, state: TrainState
) -> None:
    """Writes the model of a state in our own checkpoint format, in place of an older one.

    With LoRA the adapters are added to the model; alone they come beside it, in a folder whose name
    ends in `_adapter`. Every process gathers all parameters, for which its host needs 4 bytes each;
    process 0 writes.
    """
    params = unstack_layers(host_values(model_params(run, state)), run.model)
    generation = {NO_REPEAT_NGRAM_SIZE: run.no_repeat_ngram_size}
    first_does(
        lambda: save_folder(folder, params, run.model, vocabulary, generation, overwrite=True)
    )
    if run.lora.rank:
        adapter = folder.with_name(f"{folder.name}_adapter")
        _, matrices = split_adapters(averaged_params(run, state))
        values = host_values(matrices)
        first_does(lambda: write_adapter(adapter, values, run.model, run.lora, overwrite=True))
