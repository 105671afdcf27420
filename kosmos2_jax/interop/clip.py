"""CLIP's vision tower, from which Kosmos-1 and Kosmos-2 start (spec section 1.2).

Two layouts of names: that of Hugging Face's `CLIPModel` and `CLIPVisionModel`, and OpenAI's own,
which open_clip has too. Text tower, projections and temperature are not read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.interop import names
from kosmos2_jax.interop.files import CONFIG_JSON, read_json
from kosmos2_jax.interop.layout import LazyParams
from kosmos2_jax.interop.safetensors_io import SafetensorsReader
from kosmos2_jax.interop.torch_files import load_torch_file

MODEL_TYPES = ("clip", "clip_vision_model")
# What our tower computes with; other CLIPs have other activations, whose weights would fit.
_ACTIVATION = "quick_gelu"
_TORCH_ENDINGS = (".pt", ".pth", ".bin")
_SAFETENSORS = ".safetensors"


@dataclasses.dataclass(frozen=True)
class ClipTower:
    """A vision tower on disk.

    Attributes:
      layout: whose names the file has, "Hugging Face" or "OpenAI".
      params: by our flat path, float32, read when asked for.
      shapes: of `params`.
      unused: names of the file's other tensors.
    """

    layout: str
    params: LazyParams
    shapes: Mapping[str, tuple[int, ...]]
    unused: tuple[str, ...]


def is_clip(path: Path) -> bool:
    """Whether `path` is CLIP's: by the model_type of a folder, else by the names of tensors."""
    if path.is_dir():
        file = path / CONFIG_JSON
        return file.is_file() and read_json(file).get("model_type") in MODEL_TYPES
    if path.suffix not in (*_TORCH_ENDINGS, _SAFETENSORS):
        return False
    tensors, _ = _open(path)
    return _layout(tensors) is not None


def read_tower(path: Path, config: Kosmos2Config) -> ClipTower:
    """The tower at `path`, which `is_clip`.

    Args:
      path: a Hugging Face folder, or a file of safetensors or torch.
      config: tells how many layers and heads are wanted. Sizes are not compared.

    Raises:
      CheckpointError: damaged files, or a tower that computes something else than ours.
    """
    if path.is_dir():
        _check_config(path / CONFIG_JSON, config)
    shapes, fetch = _open(path)
    layout = _layout(shapes)
    rows = {"Hugging Face": _HUGGING_FACE, "OpenAI": _OPENAI}[layout]
    entries = tuple(e for e in names.entries(rows, config) if e.foreign in shapes)
    used = {entry.foreign for entry in entries}
    return ClipTower(
        layout=layout,
        params=LazyParams(entries, fetch),
        shapes={entry.ours: entry.our_shape(shapes[entry.foreign]) for entry in entries},
        unused=tuple(name for name in shapes if name not in used),
    )


def _check_config(file: Path, config: Kosmos2Config) -> None:
    values = read_json(file)
    vision = values.get("vision_config", values)
    wanted = {
        "hidden_act": _ACTIVATION,
        "num_attention_heads": config.vision.num_heads,
        "num_hidden_layers": config.vision.num_layers,
    }
    # transformers leaves out what is CLIP's default: that of ViT-B/32.
    defaults = {"hidden_act": _ACTIVATION, "num_attention_heads": 12, "num_hidden_layers": 12}
    for name, value in wanted.items():
        if (found := vision.get(name, defaults[name])) != value:
            raise CheckpointError(
                f"{file}: the vision tower's {name} is {found!r}, this model's {value!r}"
            )


def _open(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """Shapes of all tensors, and what reads one as float32."""
    if path.is_dir() or path.suffix == _SAFETENSORS:
        reader = SafetensorsReader(path, buffers=True)  # CLIP's files have position_ids
        shapes, read = reader.shapes, reader.read
    else:
        state = load_torch_file(path)
        tensors = {
            name: tensor
            for name, tensor in (state.items() if isinstance(state, Mapping) else ())
            if hasattr(tensor, "is_floating_point") and tensor.is_floating_point()
        }
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

        def read(name: str) -> np.ndarray:
            return tensors[name].detach().float().numpy()

    return _split_projections(shapes, read)


def _split_projections(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """OpenAI's `in_proj_weight` as three tensors: torch's MultiheadAttention joins them so."""
    found: dict[str, tuple[int, ...]] = {}
    parts: dict[str, tuple[str, int]] = {}
    for name, shape in shapes.items():
        match = re.fullmatch(r"(visual\..*\.attn\.)in_proj_(weight|bias)", name)
        if match is None:
            found[name] = shape
            continue
        for index, letter in enumerate("qkv"):
            part = f"{match[1]}{letter}_proj.{match[2]}"
            found[part] = (shape[0] // 3, *shape[1:])
            parts[part] = (name, index)

    def fetch(name: str) -> np.ndarray:
        if name not in parts:
            return read(name)
        joined, index = parts[name]
        return np.split(read(joined), 3)[index]

    return found, fetch


def _layout(shapes: Mapping[str, Any]) -> str | None:
    if "vision_model.embeddings.class_embedding" in shapes:
        return "Hugging Face"
    return "OpenAI" if "visual.class_embedding" in shapes else None


def _renamed(table: names.Table, *changes: tuple[str, str]) -> tuple[names.Row, ...]:
    """The rows of the vision tower of a table of Kosmos-2, under CLIP's names."""
    rows = []
    for row in table.rows:
        if row.ours.startswith("vision/"):
            foreign = row.foreign
            for old, new in changes:
                foreign = foreign.replace(old, new)
            rows.append(dataclasses.replace(row, foreign=foreign))
    return tuple(rows)


_HUGGING_FACE = _renamed(names.HUGGING_FACE, ("vision_model.model.", "vision_model."))
_OPENAI = _renamed(names.FAIRSEQ, ("img_model.", ""), (".ts_attn.", ".attn."))
