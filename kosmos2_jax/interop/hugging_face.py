"""Hugging Face folders: read, and written so that transformers' `from_pretrained` takes them.

Reading needs neither torch nor transformers and holds one tensor at a time until the caller
keeps it. float16 and bfloat16 weights become float32, which loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kosmos2_jax.config import IMAGE_MEAN, IMAGE_STD, Kosmos2Config
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.interop import hf_config, tokenizer_files
from kosmos2_jax.interop.checkpoint import (
    REFERENCE_GENERATION,
    Checkpoint,
    Source,
    check_exportable,
    check_vocabulary,
)
from kosmos2_jax.interop.files import CONFIG_JSON, new_folder, read_json, write_json
from kosmos2_jax.interop.layout import LazyParams, check_params, nest
from kosmos2_jax.interop.names import HUGGING_FACE, check_tensors, same_bits
from kosmos2_jax.interop.safetensors_io import (
    MAX_SHARD_SIZE,
    SafetensorsReader,
    write_safetensors,
)

_DEFAULT_GRID = 32  # of transformers' processor: 1024 location tokens
_BICUBIC = 3  # PIL's number for the filter


def read_folder(folder: Path, tokenizer: Path | None = None) -> Checkpoint:
    """Reads everything but the tensors, which `params` reads one by one when asked.

    Args:
      folder: holds `config.json` and safetensors; tokenizer files are optional.
      tokenizer: folder or model file to use instead of the folder's own.

    Raises:
      CheckpointError: another model, damaged or missing files, or tensors that do not fit.
    """
    vocab_size = hf_config.read_config(folder / CONFIG_JSON, _DEFAULT_GRID).decoder.vocab_size
    vocabulary = tokenizer_files.find_vocabulary(folder, vocab_size, tokenizer)
    grid_size = _stated_grid(folder) if vocabulary is None else vocabulary.grid_size
    config = hf_config.read_config(folder / CONFIG_JSON, grid_size)
    reader = _open_tensors(folder, config)
    both = {HUGGING_FACE.head, HUGGING_FACE.embedding} <= set(reader.shapes)
    return Checkpoint(
        config=config,
        params=LazyParams(HUGGING_FACE.entries(config), _with_embedding(reader)),
        vocabulary=vocabulary,
        generation=hf_config.read_generation(folder),
        source=Source(head_copy=both),
    )


def read_params(folder: Path, config: Kosmos2Config) -> dict[str, Any]:
    """All parameters of a folder as nested dicts of float32 arrays.

    Raises:
      CheckpointError: damaged or missing files, or tensors that do not fit `config`.
    """
    reader = _open_tensors(folder, config)
    return nest(LazyParams(HUGGING_FACE.entries(config), _with_embedding(reader)))


def _open_tensors(folder: Path, config: Kosmos2Config) -> SafetensorsReader:
    reader = SafetensorsReader(folder)
    check_tensors(reader.shapes, config, HUGGING_FACE, str(folder))
    head, embedding = HUGGING_FACE.head, HUGGING_FACE.embedding
    if {head, embedding} <= set(reader.shapes) and not same_bits(
        reader.read(head), reader.read(embedding)
    ):
        raise CheckpointError(
            f"{folder}: {head} and {embedding} differ, but Kosmos-2 ties them; untied weights "
            "cannot be read"
        )
    return reader


def _with_embedding(reader: SafetensorsReader) -> Any:
    """Reads by name; the embedding comes from the head where a file has the head alone."""
    alone = HUGGING_FACE.embedding not in reader.shapes

    def fetch(name: str) -> np.ndarray:
        return reader.read(HUGGING_FACE.head if alone and name == HUGGING_FACE.embedding else name)

    return fetch


def _stated_grid(folder: Path) -> int:
    """The grid size that a folder without tokenizer files claims."""
    path = folder / "processor_config.json"
    cells = _DEFAULT_GRID**2
    if path.is_file():
        cells = int(read_json(path).get("num_patch_index_tokens", cells))
    return round(cells**0.5)


def write_folder(
    folder: Path,
    params: Mapping[str, Any],
    config: Kosmos2Config,
    vocabulary: Kosmos2Vocabulary | None,
    generation: Mapping[str, int] = REFERENCE_GENERATION,
    source: Source | None = None,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    overwrite: bool = False,
) -> None:
    """Writes a folder for transformers' `AutoModelForImageTextToText` and `AutoProcessor`.

    The weights are float32. The tied head is left out, as transformers' `save_pretrained` does,
    unless `source` says that the file this model came from had it.

    Args:
      folder: to create; see `files.new_folder`.
      params: our parameter tree, nested or flat, NumPy or JAX arrays, scanned or not.
      config: the architecture.
      vocabulary: None writes the model alone, without tokenizer and processor.
      generation: `no_repeat_ngram_size`.
      source: leftovers of the file the model came from.
      max_shard_size: bytes of one weight file.
      overwrite: replace a checkpoint at `folder`.

    Raises:
      CheckpointError: positions or a vocabulary that transformers lacks, parameters that do not
        fit `config`, or a folder that may not be written.
    """
    check_exportable(config, "Hugging Face's Kosmos-2")
    check_vocabulary(vocabulary, config, str(folder))
    if vocabulary is not None and not vocabulary.grid_size:
        raise CheckpointError(
            "this model has no grounding tokens, which Hugging Face's processor always adds; "
            "convert it to fairseq or orbax instead"
        )
    flat = check_params(params, config)
    by_foreign = {entry.foreign: entry for entry in HUGGING_FACE.entries(config)}
    shapes = HUGGING_FACE.shapes(config)
    if source is None or not source.head_copy:
        del shapes[HUGGING_FACE.head]

    def fetch(name: str) -> np.ndarray:
        entry = by_foreign[HUGGING_FACE.embedding if name == HUGGING_FACE.head else name]
        return entry.to_foreign(np.asarray(flat[entry.ours]).astype(np.float32, copy=False))

    with new_folder(folder, overwrite) as partial:
        write_json(partial / CONFIG_JSON, hf_config.config_json(config))
        write_json(partial / "generation_config.json", hf_config.generation_json(generation))
        if vocabulary is not None:
            tokenizer_files.write_hugging_face(partial, vocabulary, config)
            _write_processor(partial, config)
        write_safetensors(partial, shapes, fetch, max_shard_size)


def _write_processor(folder: Path, config: Kosmos2Config) -> None:
    """`processor_config.json`, and `preprocessor_config.json` for transformers before 5."""
    size = {"height": config.vision.image_size, "width": config.vision.image_size}
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "Kosmos2Processor",
            "num_patch_index_tokens": config.grid_size**2,
            "image_processor": image_processor,
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {"processor_class": "Kosmos2Processor", **image_processor},
    )
