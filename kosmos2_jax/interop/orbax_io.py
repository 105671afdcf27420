"""Our own checkpoint folder: `kosmos2.json`, `tokenizer/` and Orbax arrays in `params/`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import CheckpointError, ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.interop.checkpoint import (
    REFERENCE_GENERATION,
    Checkpoint,
    Source,
    check_vocabulary,
)
from kosmos2_jax.interop.files import KOSMOS2_JSON, as_path, new_folder, read_json, write_json
from kosmos2_jax.interop.layout import check_params, check_shapes, flatten, nest, unpadded
from kosmos2_jax.interop.tokenizer_files import find_vocabulary, write_sentencepiece

FORMAT = 1
_PARAMS, _TOKENIZER = "params", "tokenizer"
# What Orbax and TensorStore raise for arrays that are missing or damaged.
_DAMAGE = (OSError, ValueError, KeyError, RuntimeError)


def save_folder(
    folder: epath.PathLike,
    params: Mapping[str, Any],
    config: Kosmos2Config,
    vocabulary: Kosmos2Vocabulary | None,
    generation: Mapping[str, int] = REFERENCE_GENERATION,
    source: Source | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes our folder; the only format that holds every kind of position.

    Of several processes, the one that calls it writes alone.

    Args:
      folder: to create; see `files.new_folder`.
      params: our parameter tree, nested or flat, NumPy or JAX arrays, scanned or not; stored
        with one subtree per layer.
      config: the architecture.
      vocabulary: None writes no tokenizer.
      generation: `no_repeat_ngram_size`.
      source: leftovers of the foreign file the model came from.
      overwrite: replace a checkpoint at `folder`.

    Raises:
      CheckpointError: parameters or a vocabulary that do not fit `config`, or a folder that may
        not be written.
    """
    import jax
    import orbax.checkpoint as ocp

    check_vocabulary(vocabulary, config, str(folder))
    tree = nest(check_params(params, config))
    description = {
        "format": FORMAT,
        "config": unpadded(config).to_dict(),
        "generation": dict(generation),
        "source": (source or Source()).to_dict(),
    }
    with new_folder(folder, overwrite) as partial:
        if vocabulary is not None:
            (partial / _TOKENIZER).mkdir()
            write_sentencepiece(partial / _TOKENIZER, vocabulary)
        number = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"{number}"
        )
        with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
            checkpointer.save(partial / _PARAMS, tree)
        write_json(partial / KOSMOS2_JSON, description)


def read_folder(
    folder: epath.PathLike,
    tokenizer: Path | None = None,
    shardings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Reads our folder.

    Args:
      folder: written by `save_folder`; on a disk or, as gs://BUCKET/FOLDER, in a bucket.
      tokenizer: folder or model file to use instead of the folder's own.
      shardings: a tree of `jax.sharding.Sharding` like the (unscanned) parameters; arrays are
        then restored straight into them. Without it they are NumPy arrays.

    Raises:
      CheckpointError: damaged or missing files, or parameters that do not fit their config.
    """
    described = read_description(folder, tokenizer)
    params = _restore(as_path(folder), described.config, shardings)
    return dataclasses.replace(described, params=params)


def read_description(folder: epath.PathLike, tokenizer: Path | None = None) -> Checkpoint:
    """Reads our folder without its parameters; see `read_folder`."""
    folder = as_path(folder)
    description = read_json(folder / KOSMOS2_JSON)
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / KOSMOS2_JSON} has format {description.get('format')!r}; this version "
            f"reads format {FORMAT}"
        )
    try:
        config = Kosmos2Config.from_dict(description["config"])
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / KOSMOS2_JSON}: its config is damaged ({error})") from None
    vocabulary = find_vocabulary(folder / _TOKENIZER, config.decoder.vocab_size, tokenizer)
    if vocabulary is not None and vocabulary.grid_size != config.grid_size:
        raise CheckpointError(
            f"{folder}: the tokenizer asks for a grid of {vocabulary.grid_size}, the config says "
            f"{config.grid_size}"
        )
    return Checkpoint(
        config=config,
        params={},
        vocabulary=vocabulary,
        generation=dict(description.get("generation", REFERENCE_GENERATION)),
        source=Source.from_dict(description.get("source", {})),
    )


def _restore(
    folder: epath.Path, config: Kosmos2Config, shardings: Mapping[str, Any] | None
) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    path = folder / _PARAMS
    if not path.is_dir():
        raise CheckpointError(f"{path} is missing")
    by_path = None if shardings is None else flatten(shardings)
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(path).item_metadata
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        if metadata is None:
            raise CheckpointError(f"{path} is cut short or damaged: it does not say what it holds")
        found = flatten(metadata.tree)
        check_shapes({name: leaf.shape for name, leaf in found.items()}, config, str(path))
        arguments = {name: _argument(ocp, by_path, name) for name in found}
        try:
            return checkpointer.restore(path, restore_args=nest(arguments))
        except _DAMAGE as error:
            raise _damaged(path, error) from error


def _argument(ocp: Any, shardings: Mapping[str, Any] | None, name: str) -> Any:
    if shardings is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32)
    return ocp.ArrayRestoreArgs(sharding=shardings[name], dtype=np.float32)


def _damaged(path: epath.Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [""])[0][:200]
    return CheckpointError(f"{path} is cut short or damaged ({type(error).__name__}: {reason})")
