"""What every format reads into and writes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kosmos2_jax.config import XPOS, Kosmos2Config
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.interop.layout import LazyParams

NO_REPEAT_NGRAM_SIZE = "no_repeat_ngram_size"
# What official inference and the published generation_config.json use (spec section 2.1).
REFERENCE_GENERATION: Mapping[str, int] = {NO_REPEAT_NGRAM_SIZE: 3}


@dataclasses.dataclass(frozen=True)
class Source:
    """What a foreign file held besides the parameters, kept to write the same file again.

    Attributes:
      head_copy: the tied output projection was stored beside the token embedding. transformers
        stores the embedding alone, fairseq both; whoever had both gets both back.
      buffers: fairseq's tensors that are no parameters, by foreign name.
    """

    head_copy: bool = False
    buffers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; float32 survives the way there and back exactly."""
        buffers = {name: np.asarray(value).tolist() for name, value in self.buffers.items()}
        return {"head_copy": self.head_copy, "buffers": buffers}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Source:
        """Inverse of `to_dict`."""
        buffers = {
            name: np.asarray(value, np.float32) for name, value in values.get("buffers", {}).items()
        }
        return cls(head_copy=bool(values.get("head_copy", False)), buffers=buffers)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model with all that is needed to use it.

    Attributes:
      config: the architecture.
      params: nested dicts of float32 arrays, one `layers_{i}` per layer (or, while converting,
        `LazyParams`).
      vocabulary: None if the source had no tokenizer.
      generation: how to decode: `no_repeat_ngram_size` (0 for no blocking).
      source: leftovers of the format it was read from.
    """

    config: Kosmos2Config
    params: Mapping[str, Any] | LazyParams
    vocabulary: Kosmos2Vocabulary | None
    generation: Mapping[str, int]
    source: Source = Source()


def check_exportable(config: Kosmos2Config, format_name: str) -> None:
    """Raises `CheckpointError` for a model that foreign code would compute differently."""
    if config.decoder.position == XPOS:
        raise CheckpointError(
            f"this model uses xpos positions, which {format_name} has no counterpart for: it "
            "would give wrong outputs there; keep it in the orbax format"
        )


def check_vocabulary(
    vocabulary: Kosmos2Vocabulary | None, config: Kosmos2Config, where: str
) -> None:
    """Raises `CheckpointError` if the tokenizer and the embedding differ in size."""
    size = config.decoder.vocab_size
    if vocabulary is not None and vocabulary.vocab_size != size:
        raise CheckpointError(
            f"{where}: the tokenizer with a grid of {config.grid_size} has "
            f"{vocabulary.vocab_size} tokens, the model {size}"
        )
