"""LoRA adapters in the files of Hugging Face's peft, for transformers' Kosmos-2.

A folder with `adapter_config.json` and `adapter_model.safetensors`, which
`peft.PeftModel.from_pretrained(Kosmos2ForConditionalGeneration…, folder)` loads. Names are those of
transformers' modules; matrices are transposed, as torch's Linear keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import CheckpointError, ConfigError
from kosmos2_jax.interop.files import ADAPTER_CONFIG_JSON, new_folder, read_json, write_json
from kosmos2_jax.interop.layout import check_params, flatten, nest, unstack_layers
from kosmos2_jax.interop.names import HUGGING_FACE
from kosmos2_jax.models.lora import LORA_A, LORA_B, LoraConfig, is_adapter, merge_adapters

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ENDINGS = {LORA_A: ".lora_A.weight", LORA_B: ".lora_B.weight"}
# Settings of peft that change what an adapter computes, with the values that mean plain LoRA.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_rslora": (None, False),
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
}


def write_adapter(
    folder: Path,
    params: Mapping[str, Any],
    config: Kosmos2Config,
    lora: LoraConfig,
    *,
    overwrite: bool = False,
) -> None:
    """Writes the adapters of a model.

    Args:
      folder: to create; see `files.new_folder`.
      params: parameters that hold the adapters, nested, NumPy or JAX arrays, layers stacked or not.
      config: the architecture. One with xPos positions is written too, for `add_adapter`; peft
        would load it onto a transformers model that computes something else.
      lora: the adapters' settings.
      overwrite: replace an adapter at `folder`.

    Raises:
      CheckpointError: `folder` may not be written.
    """
    modules = _modules(config)
    tensors = {}
    for path, value in flatten(unstack_layers(params, config)).items():
        if is_adapter(path):
            module, _, kind = path.rpartition("/")
            name = f"{_PREFIX}{modules[module]}{_ENDINGS[kind]}"
            tensors[name] = np.ascontiguousarray(np.asarray(value, np.float32).T)
    targets = {
        name.removeprefix(_PREFIX).removesuffix(_ENDINGS[LORA_A])
        for name in tensors
        if name.endswith(_ENDINGS[LORA_A])
    }
    description = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
    with new_folder(folder, overwrite) as partial:
        (partial / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        write_json(partial / ADAPTER_CONFIG_JSON, description)


def add_adapter(params: Mapping[str, Any], config: Kosmos2Config, folder: Path) -> dict[str, Any]:
    """A model's parameters with an adapter of peft's added to its kernels.

    Args:
      params: the model's, nested or flat, NumPy arrays; lazy ones are read.
      config: the architecture.
      folder: an adapter, from `write_adapter` or from peft.

    Returns:
      Nested, one `layers_{i}` per layer.

    Raises:
      CheckpointError: no adapter, one that is not plain LoRA, a damaged one, or one of another
        model.
    """
    settings = read_json(folder / ADAPTER_CONFIG_JSON)
    for name, plain in _PLAIN.items():
        if settings.get(name) not in plain:
            raise CheckpointError(
                f"{folder / ADAPTER_CONFIG_JSON} has {name} {settings[name]!r}, and only plain "
                "LoRA can be read; merge it with peft's merge_and_unload instead"
            )
    try:
        lora = LoraConfig(rank=settings["r"], alpha=settings["lora_alpha"])
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG_JSON} is damaged ({error})") from None
    base = dict(check_params(params, config))
    found = _read_matrices(folder / WEIGHTS, config)
    _check_matrices(found, base, lora.rank, folder / WEIGHTS)
    return merge_adapters(nest(base | found), lora.scale)


def _modules(config: Kosmos2Config) -> dict[str, str]:
    """Paths of our linear layers to transformers' names of them."""
    return {
        entry.ours.removesuffix("/kernel"): entry.foreign.removesuffix(".weight")
        for entry in HUGGING_FACE.entries(config)
        if entry.transform == "transpose"
    }


def _read_matrices(file: Path, config: Kosmos2Config) -> dict[str, np.ndarray]:
    """The matrices by our paths, in our layout."""
    try:
        tensors = load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is cut short or damaged ({error})") from None
    known = {
        f"{_PREFIX}{theirs}{ending}": f"{ours}/{kind}"
        for ours, theirs in _modules(config).items()
        for kind, ending in _ENDINGS.items()
    }
    if strange := sorted(tensors.keys() - known.keys()):
        raise CheckpointError(f"{file} does not fit the model: it has no layer for {strange[0]}")
    return {known[name]: np.asarray(value, np.float32).T for name, value in tensors.items()}


def _check_matrices(
    found: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], rank: int, file: Path
) -> None:
    for module in {path.rpartition("/")[0] for path in found}:
        inputs, outputs = base[f"{module}/kernel"].shape
        wanted = {f"{module}/{LORA_A}": (inputs, rank), f"{module}/{LORA_B}": (rank, outputs)}
        for path, shape in wanted.items():
            if path not in found:
                raise CheckpointError(f"{file} is not whole: it has no {path}")
            if found[path].shape != shape:
                raise CheckpointError(
                    f"{file} does not fit the model: {path} has shape {found[path].shape} instead "
                    f"of {shape}"
                )
