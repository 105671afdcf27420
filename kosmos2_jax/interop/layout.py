"""Trees of parameters: nested and flat, one subtree per layer or one for all layers.

Flat paths are joined by "/", as `decoder/layers_0/mlp/up/kernel`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.interop.names import HUGGING_FACE, Entry, check_listing

_LAYER = re.compile(r"layers_(\d+)")
_EMBEDDING = "decoder/token_embedding"


class LazyParams(Mapping[str, np.ndarray]):
    """Parameters by flat path, each read from its file when asked for and not kept.

    Args:
      entries: the tensors of the model.
      fetch: reads one foreign tensor by its foreign name.
    """

    def __init__(self, entries: tuple[Entry, ...], fetch: Callable[[str], np.ndarray]) -> None:
        self._entries = {entry.ours: entry for entry in entries}
        self._fetch = fetch

    def __getitem__(self, path: str) -> np.ndarray:
        entry = self._entries[path]
        return entry.to_ours(self._fetch(entry.foreign))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def flatten(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Flat paths to leaves. `LazyParams` come back as they are, unread."""
    if isinstance(params, LazyParams):
        return params
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def nest(
    flat: Mapping[str, Any], place: Callable[[str, np.ndarray], Any] | None = None
) -> dict[str, Any]:
    """Nested dicts from flat paths, reading lazy ones one by one.

    Args:
      flat: leaves by path.
      place: maps (path, leaf) to what is kept, so that a tensor can go to its device before the
        next one is read.
    """
    nested: dict[str, Any] = {}
    for path in flat:
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        leaf = flat[path]
        node[name] = leaf if place is None else place(path, leaf)
    return nested


def stack_layers(params: Mapping[str, Any], config: Kosmos2Config) -> dict[str, Any]:
    """Turns `layers_0 .. layers_{n-1}` of vision and decoder into one `layers` subtree.

    Every leaf of `layers` gets a leading axis over layers: the layout of a model with
    `scan_layers`. A tree that is stacked already comes back equal.
    """
    stacked = {}
    for part, subtree in params.items():
        if not isinstance(subtree, Mapping) or not any(map(_LAYER.fullmatch, subtree)):
            stacked[part] = subtree
            continue
        count = getattr(config, part).num_layers
        layers = [flatten(subtree[f"layers_{i}"]) for i in range(count)]
        rest = {name: value for name, value in subtree.items() if not _LAYER.fullmatch(name)}
        joined = {path: np.stack([np.asarray(flat[path]) for flat in layers]) for path in layers[0]}
        stacked[part] = {**rest, "layers": nest(joined)}
    return stacked


def unstack_layers(params: Mapping[str, Any], config: Kosmos2Config) -> dict[str, Any]:
    """Inverse of `stack_layers`. A tree without `layers` comes back equal."""
    unstacked = {}
    for part, subtree in params.items():
        if not isinstance(subtree, Mapping) or "layers" not in subtree:
            unstacked[part] = subtree
            continue
        flat = flatten(subtree["layers"])
        rest = {name: value for name, value in subtree.items() if name != "layers"}
        for i in range(getattr(config, part).num_layers):
            rest[f"layers_{i}"] = nest({path: leaf[i] for path, leaf in flat.items()})
        unstacked[part] = rest
    return unstacked


def unpadded(config: Kosmos2Config) -> Kosmos2Config:
    """The architecture as files describe it: padding the vocabulary is a matter of the mesh."""
    return config.replace(decoder={"vocab_multiple": 1})


def pad_vocabulary(params: Mapping[str, Any], config: Kosmos2Config) -> dict[str, Any]:
    """Adds the rows of zeros that `config.decoder.vocab_multiple` asks for; files have none.

    Args:
      params: nested dicts, as `load` gives them.
      config: of the model that is to take them.
    """
    decoder = dict(params["decoder"])
    table = np.asarray(decoder["token_embedding"])
    missing = config.decoder.padded_vocab_size - len(table)
    decoder["token_embedding"] = np.pad(table, ((0, missing), (0, 0)))
    return {**params, "decoder": decoder}


def check_params(params: Mapping[str, Any], config: Kosmos2Config) -> Mapping[str, Any]:
    """The flat, unstacked parameters of a model as files hold them, compared with its config.

    The vocabulary's padding is left out, if there is any.

    Raises:
      CheckpointError: missing, extra or misshapen parameters, the first 20 by name.
    """
    if isinstance(params, LazyParams):
        return params  # compared with the config when their file was opened
    flat = dict(flatten(unstack_layers(params, config)))
    if len(flat.get(_EMBEDDING, ())) == config.decoder.padded_vocab_size:
        flat[_EMBEDDING] = flat[_EMBEDDING][: config.decoder.vocab_size]
    check_shapes({path: leaf.shape for path, leaf in flat.items()}, config, "the model given")
    return flat


def check_shapes(found: Mapping[str, tuple[int, ...]], config: Kosmos2Config, where: str) -> None:
    """As `names.check_tensors`, for our own paths and layout."""
    wanted = {entry.ours: entry.shape for entry in HUGGING_FACE.entries(config)}
    check_listing(found, wanted, where)
