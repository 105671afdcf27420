"""Any checkpoint in, any checkpoint out: what `kosmos2 convert` and the predictor use."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.interop import fairseq, hf_config, hugging_face, orbax_io
from kosmos2_jax.interop.checkpoint import Checkpoint
from kosmos2_jax.interop.files import (
    CONFIG_JSON,
    KOSMOS2_JSON,
    as_path,
    check_destination,
    in_bucket,
    read_json,
)
from kosmos2_jax.interop.layout import flatten, nest
from kosmos2_jax.interop.names import num_parameters
from kosmos2_jax.interop.safetensors_io import MAX_SHARD_SIZE

HUGGING_FACE, FAIRSEQ, ORBAX = "hugging_face", "fairseq", "orbax"
ALIASES = {"hf": HUGGING_FACE, HUGGING_FACE: HUGGING_FACE, FAIRSEQ: FAIRSEQ, ORBAX: ORBAX}

PathLike = str | os.PathLike[str]


def detect_format(path: PathLike) -> str:
    """Says which format a checkpoint has: "hugging_face", "fairseq" or "orbax".

    Args:
      path: a folder, or a `.pt` file; a folder of ours may lie in a bucket.

    Raises:
      CheckpointError: nothing there, an empty folder, no known checkpoint, or another model
        (named by the model_type of its `config.json`).
    """
    path = as_path(path)
    if path.is_file():
        if path.suffix == ".pt":
            return FAIRSEQ
        raise CheckpointError(f"{path} is no checkpoint: give a folder or a .pt file")
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist")
    if not any(path.iterdir()):
        raise CheckpointError(f"{path} is an empty folder; a checkpoint is needed")
    if (path / KOSMOS2_JSON).is_file():
        return ORBAX
    if (path / CONFIG_JSON).is_file():
        hf_config.check_model_type(read_json(path / CONFIG_JSON), path / CONFIG_JSON)
        return HUGGING_FACE
    if any(path.glob("*.pt")):
        return FAIRSEQ
    raise CheckpointError(
        f"{path} holds no checkpoint: neither {KOSMOS2_JSON} (ours), {CONFIG_JSON} (Hugging "
        "Face) nor a .pt file (fairseq)"
    )


def load(
    path: PathLike,
    tokenizer: PathLike | None = None,
    config: Kosmos2Config | None = None,
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> Checkpoint:
    """Reads a checkpoint of any format.

    Args:
      path: a folder, or a `.pt` file.
      tokenizer: folder with the tokenizer files, or a sentencepiece model, to use instead of
        those beside the weights.
      config: the architecture, for a fairseq file whose shapes do not tell it.
      place: maps (flat path, float32 array) to what `params` shall hold, for example onto a
        device, before the next tensor is read.

    Returns:
      The checkpoint; `params` are nested dicts, one `layers_{i}` per layer.

    Raises:
      CheckpointError: see `detect_format`; also damaged files and tensors that do not fit.
    """
    checkpoint = open_checkpoint(path, tokenizer, config)
    return dataclasses.replace(checkpoint, params=nest(flatten(checkpoint.params), place))


def open_checkpoint(
    path: PathLike, tokenizer: PathLike | None = None, config: Kosmos2Config | None = None
) -> Checkpoint:
    """As `load`, but that `params` of foreign files are read one by one when asked for."""
    format_name = detect_format(path)
    beside = None if tokenizer is None else Path(tokenizer)
    if beside is not None and not beside.exists():
        raise CheckpointError(f"{beside} does not exist; name the folder of the tokenizer")
    if format_name == ORBAX:
        return orbax_io.read_folder(path, beside)
    if in_bucket(path):
        raise CheckpointError(
            f"{path} is {format_name}, and only folders of ours are read from a bucket; copy it to "
            "a disk"
        )
    if format_name == HUGGING_FACE:
        return hugging_face.read_folder(Path(path), beside)
    return fairseq.read_file(Path(path), beside, config)


def describe(path: PathLike) -> Checkpoint:
    """As `open_checkpoint`, for its config, vocabulary and generation alone."""
    if detect_format(path) == ORBAX:
        return orbax_io.read_description(path)
    return open_checkpoint(path)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was converted into what.

    Attributes:
      source_format: of the checkpoint that was read.
      destination_format: of the one written.
      num_parameters: each counted once.
      has_tokenizer: False if the source had none, so that the copy has none either.
    """

    source_format: str
    destination_format: str
    num_parameters: int
    has_tokenizer: bool


def convert(
    src: PathLike,
    dst: PathLike,
    to: str,
    *,
    tokenizer: PathLike | None = None,
    config: Kosmos2Config | None = None,
    adapter: PathLike | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    overwrite: bool = False,
) -> Conversion:
    """Converts a checkpoint; Hugging Face files are written one tensor in memory at a time.

    With an adapter the whole model is in memory.

    Args:
      src: a folder or a `.pt` file of any format; a folder of ours may lie in a bucket.
      dst: the folder to create; for fairseq also a `.pt` file.
      to: "hugging_face" (or "hf"), "fairseq" or "orbax".
      tokenizer: see `load`.
      config: see `load`.
      adapter: folder of a LoRA adapter in peft's files, to be added to the model's kernels.
      max_shard_size: bytes of one Hugging Face weight file.
      overwrite: replace a checkpoint at `dst`; nothing else is ever replaced.

    Raises:
      CheckpointError: an unknown format, a source that cannot be read, or a destination that
        exists or cannot hold the model. `dst` is then as it was before.
    """
    src, dst = as_path(src) if in_bucket(src) else Path(src), Path(dst)
    if to not in ALIASES:
        raise CheckpointError(f"unknown format {to!r}; known: hf, fairseq, orbax")
    _check_paths(src, dst, overwrite)
    target = ALIASES[to]
    source_format = detect_format(src)
    checkpoint = open_checkpoint(src, tokenizer, config)
    params = checkpoint.params
    if adapter is not None:
        from kosmos2_jax.interop.peft import add_adapter  # imports JAX, which others do not need

        params = add_adapter(params, checkpoint.config, Path(adapter))
    arguments = (dst, params, checkpoint.config, checkpoint.vocabulary)
    rest = {
        "generation": checkpoint.generation,
        "source": checkpoint.source,
        "overwrite": overwrite,
    }
    if target == HUGGING_FACE:
        hugging_face.write_folder(*arguments, **rest, max_shard_size=max_shard_size)
    elif target == FAIRSEQ:
        fairseq.write_file(*arguments, **rest)
    else:
        orbax_io.save_folder(*arguments, **rest)
    return Conversion(
        source_format=source_format,
        destination_format=target,
        num_parameters=num_parameters(checkpoint.config),
        has_tokenizer=checkpoint.vocabulary is not None,
    )


def _check_paths(src: PathLike, dst: Path, overwrite: bool) -> None:
    """Refuses before anything large is read."""
    if dst.suffix != ".pt":
        check_destination(dst, overwrite)
    if in_bucket(src):
        return
    source, destination = src.resolve(), dst.resolve()
    if source == destination or destination in source.parents or source in destination.parents:
        raise CheckpointError(f"{dst} and {src} lie in one another; choose another folder")
