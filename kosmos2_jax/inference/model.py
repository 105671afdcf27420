"""The one contract between the model and everything that uses it (as t5x has it).

Trainer, evaluator and predictor know only `init`, `loss_fn`, `predict_batch` and `score_batch`.

Letters: B rows, L tokens, N pictures a row, S pixels a side. Features of a batch, all int32 but
for loss_weights (float32) and images (uint8): tokens, targets, loss_weights, positions,
segment_ids, image_slots [B, L], images [B, N, S, S, 3]; see
`kosmos2_jax.data.packing_converter.PackingFeatureConverter`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference import decoding
from kosmos2_jax.inference.decoding import Generated, GenerationConfig
from kosmos2_jax.inference.prompt_batch import TEXT_SLOT, PromptBatch, bucket_length
from kosmos2_jax.models.kosmos2 import Kosmos2, initial_params
from kosmos2_jax.models.losses import TargetScores, score_targets, weighted_sums

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Kosmos2Model:
    """An architecture with its loss, prediction and scoring; parameters are passed in.

    Attributes:
      config: the architecture.
      generation: how `predict_batch` writes.
      loss_chunk: tokens of a row whose logits `loss_fn` and `score_batch` hold at a time; 0 for
        all.
    """

    config: Kosmos2Config
    generation: GenerationConfig = GenerationConfig()
    loss_chunk: int = 0

    @property
    def module(self) -> Kosmos2:
        """The Linen module."""
        return Kosmos2(self.config)

    def init(self, rng: Array) -> dict[str, Any]:
        """Fresh parameters, float32, without the boxes that carry logical axis names."""
        return nn.meta.unbox(initial_params(self.config, rng))

    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: Array | None = None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Sum of weighted token losses, in nats, and sums to report.

        Sums, not means: the mean is over all tokens of a whole update (trap T-26).

        Args:
          params: of the model.
          batch: see the module.
          dropout_rng: None for no dropout.

        Returns:
          The sum, and {"weight": sum of weights, "correct": weighted number of targets to which
          no other token is preferred}.
        """
        scores, weights = self._scores(params, batch, dropout_rng), batch["loss_weights"]
        loss, weight = weighted_sums(scores.losses, weights)
        return loss, {"weight": weight, "correct": jnp.sum(scores.best * weights)}

    def score_batch(self, params: Any, batch: Batch) -> Float[Array, " B"]:
        """Log-likelihood of each row's weighted targets, in nats: 0 at best."""
        losses = self._scores(params, batch, None).losses
        return -jnp.sum(losses * batch["loss_weights"], axis=-1)

    def predict_batch(
        self, params: Any, batch: Batch, generation: GenerationConfig | None = None
    ) -> Generated:
        """Writes what follows each row's prompt: all that stands before its first weighted target.

        Args:
          params: of the model.
          batch: see the module; one example a row. Arrays of the host, or traced ones.
          generation: instead of the model's own.

        Raises:
          ValueError: a row holds several examples.
        """
        return self.generate(params, prompts_of(batch), generation)

    def generate(
        self, params: Any, prompts: PromptBatch, generation: GenerationConfig | None = None
    ) -> Generated:
        """As `kosmos2_jax.inference.decoding.generate`, by default as `generation` says."""
        return decoding.generate(self.config, params, prompts, generation or self.generation)

    def _scores(self, params: Any, batch: Batch, dropout_rng: Array | None) -> TargetScores:
        features = ("tokens", "positions", "segment_ids", "images", "image_slots")
        hidden = self.module.apply(
            {"params": params},
            *(batch.get(name) for name in features),
            deterministic=dropout_rng is None,
            rngs=None if dropout_rng is None else {"dropout": dropout_rng},
            method="hidden",
        )
        table = params["decoder"]["token_embedding"]
        return score_targets(hidden, table, batch["targets"], self.loss_chunk)


def prompts_of(batch: Batch) -> PromptBatch:
    """The rows of a batch up to the first target that has weight, padded to a bucket.

    A row without any weighted target is a prompt as a whole. While JAX traces, lengths are not
    known: the prompts are then as long as the rows, and packed rows are not noticed.

    Raises:
      ValueError: a row holds several examples.
    """
    traced = isinstance(batch["segment_ids"], jax.core.Tracer)
    xp = jnp if traced else np
    segments = xp.asarray(batch["segment_ids"])
    if not traced and segments.max(initial=0) > 1:
        raise ValueError("predict_batch takes one example a row, but these rows are packed")
    weighted = xp.asarray(batch["loss_weights"]) > 0
    whole = xp.maximum((segments > 0).sum(axis=1), 1)
    lengths = xp.where(weighted.any(axis=1), weighted.argmax(axis=1) + 1, whole).astype(np.int32)
    places = segments.shape[1] if traced else bucket_length(int(lengths.max()))
    inside = xp.arange(places)[None] < lengths[:, None]

    def fit(name: str, filler: int) -> Any:
        values = xp.asarray(batch[name])[:, :places]
        values = xp.pad(values, ((0, 0), (0, places - values.shape[1])))
        return xp.where(inside, values, filler).astype(np.int32)

    tokens = fit("tokens", Kosmos2Vocabulary.pad_id)
    return PromptBatch(tokens, lengths, fit("image_slots", TEXT_SLOT), batch.get("images"))
