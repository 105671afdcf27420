"""`config.json` and `generation_config.json` of transformers' Kosmos-2, to and from ours.

One table serves both directions. What we do not model must have the reference's value: a file
with, say, another activation is refused rather than computed wrongly (spec sections 1.2-1.7).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import CheckpointError, ConfigError
from kosmos2_jax.interop.checkpoint import NO_REPEAT_NGRAM_SIZE
from kosmos2_jax.interop.files import read_json

MODEL_TYPE = "kosmos-2"
_TEXT, _VISION, _TOP = "text_config", "vision_config", ""

# Section of config.json, its field, our field.
FIELDS: tuple[tuple[str, str, str], ...] = (
    (_TOP, "latent_query_num", "resampler.num_latents"),
    (_TEXT, "vocab_size", "decoder.vocab_size"),
    (_TEXT, "embed_dim", "decoder.hidden_size"),
    (_TEXT, "layers", "decoder.num_layers"),
    (_TEXT, "attention_heads", "decoder.num_heads"),
    (_TEXT, "ffn_dim", "decoder.mlp_dim"),
    (_TEXT, "max_position_embeddings", "decoder.max_length"),
    (_TEXT, "dropout", "decoder.dropout"),
    # The only attention dropout that acts in the official code is the resampler's (trap T-28).
    (_TEXT, "attention_dropout", "resampler.attention_dropout"),
    (_TEXT, "layer_norm_eps", "decoder.layer_norm_epsilon"),
    (_VISION, "hidden_size", "vision.hidden_size"),
    (_VISION, "num_hidden_layers", "vision.num_layers"),
    (_VISION, "num_attention_heads", "vision.num_heads"),
    (_VISION, "intermediate_size", "vision.mlp_dim"),
    (_VISION, "image_size", "vision.image_size"),
    (_VISION, "patch_size", "vision.patch_size"),
    (_VISION, "layer_norm_eps", "vision.layer_norm_epsilon"),
)

# Section, field, the only value our model computes with (and the one transformers assumes).
FIXED: tuple[tuple[str, str, Any], ...] = (
    (_TOP, "tie_word_embeddings", True),
    (_TEXT, "tie_word_embeddings", True),
    (_TEXT, "activation_function", "gelu"),
    (_TEXT, "activation_dropout", 0.0),
    (_TEXT, "layerdrop", 0.0),
    (_TEXT, "scale_embedding", True),
    (_TEXT, "add_cross_attention", False),
    (_TEXT, "bos_token_id", 0),
    (_TEXT, "pad_token_id", 1),
    (_TEXT, "eos_token_id", 2),
    (_VISION, "hidden_act", "quick_gelu"),
    (_VISION, "attention_dropout", 0.0),
    (_VISION, "num_channels", 3),
)


def read_config(path: Path, grid_size: int) -> Kosmos2Config:
    """The model that a `config.json` describes; fields it lacks have the reference's values.

    Args:
      path: the file.
      grid_size: location cells a side, which the file does not say.

    Raises:
      CheckpointError: another model, or a setting that our model does not have.
    """
    values = read_json(path)
    check_model_type(values, path)
    if values.get("quantization_config"):
        raise CheckpointError(f"{path}: quantised weights cannot be read; save them as float32")
    for section, field, wanted in FIXED:
        value = _section(values, section, path).get(field, wanted)
        if value != wanted:
            name = f"{section}.{field}" if section else field
            raise CheckpointError(f"{path}: {name} is {value!r}; only {wanted!r} is supported")
    settings: dict[str, Any] = {"grid_size": grid_size}
    for section, field, ours in FIELDS:
        part, name = ours.split(".")
        theirs = _section(values, section, path)
        if field in theirs:
            value = _number(theirs[field], f"{path}: {section or 'top level'} {field}")
            settings.setdefault(part, {})[name] = value
    try:
        return Kosmos2Config.from_dict(settings)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def check_model_type(values: Mapping[str, Any], path: Path) -> None:
    """Raises `CheckpointError` naming the model that a `config.json` is of, if not Kosmos-2."""
    found = values.get("model_type")
    if found != MODEL_TYPE:
        kind = f"a {found!r} model" if found else "a model without model_type"
        raise CheckpointError(f"{path} describes {kind}; a {MODEL_TYPE!r} model is needed")


def _section(values: Mapping[str, Any], section: str, path: Path) -> Mapping[str, Any]:
    part = values.get(section) if section else values
    if part is None:
        return {}
    if not isinstance(part, Mapping):
        raise CheckpointError(f"{path}: {section} is no JSON object")
    return part


def _number(value: Any, where: str) -> int | float:
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]  # a square picture written as height and width
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{where} is {value!r}; a number is needed")
    return value


def config_json(config: Kosmos2Config) -> dict[str, Any]:
    """The content of `config.json` for a model."""
    values: dict[str, Any] = {
        "architectures": ["Kosmos2ForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "dtype": "float32",
        _TEXT: {"model_type": "kosmos_2_text_model"},
        _VISION: {"model_type": "kosmos_2_vision_model"},
    }
    for section, field, wanted in FIXED:
        (values[section] if section else values)[field] = wanted
    for section, field, ours in FIELDS:
        (values[section] if section else values)[field] = attrgetter(ours)(config)
    return values


def generation_json(generation: Mapping[str, int]) -> dict[str, Any]:
    """The content of `generation_config.json`."""
    return {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        NO_REPEAT_NGRAM_SIZE: generation.get(NO_REPEAT_NGRAM_SIZE, 0),
    }


def read_generation(folder: Path) -> dict[str, int]:
    """How the folder says to decode: `generation_config.json`, else the model's config.

    A folder that says nothing has no n-gram blocking, as in transformers.
    """
    places: list[Mapping[str, Any]] = []
    if (folder / "generation_config.json").is_file():
        places.append(read_json(folder / "generation_config.json"))
    config = read_json(folder / "config.json")
    places += [_section(config, _TEXT, folder / "config.json"), config]
    sizes = [place[NO_REPEAT_NGRAM_SIZE] for place in places if place.get(NO_REPEAT_NGRAM_SIZE)]
    return {NO_REPEAT_NGRAM_SIZE: int(sizes[0]) if sizes else 0}
