"""The one contract between the model and everything that uses it (as t5x has it).

Trainer, evaluator and predictor know only `init`, `loss_fn`, `predict_batch` and `score_batch`.

Letters: B rows, L tokens, N pictures a row, S pixels a side. Features of a batch, all int32 but
for loss_weights (float32) and images (uint8): tokens, targets, loss_weights, positions,
segment_ids, image_slots [B, L], images [B, N, S, S, 3], and for losses by task task_ids [B, L]
(numbers from 0, of no meaning where the weight is 0); see
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
from kosmos2_jax.inference.beam_search import best_beams
from kosmos2_jax.inference.decoding import Generated
from kosmos2_jax.inference.prompt_batch import TEXT_SLOT, PromptBatch, bucket_length
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.models.kosmos2 import Kosmos2, initial_params
from kosmos2_jax.models.losses import TargetScores, score_targets, weighted_sums

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Kosmos2Model:
    """An architecture with its loss, prediction and scoring; parameters are passed in.

    Attributes:
      config: the architecture.
      sampling: how `predict_batch` writes.
      loss_chunk: tokens of a row whose logits `loss_fn` and `score_batch` hold at a time; 0 for
        all.
      num_tasks: how many tasks the feature `task_ids` of a batch tells apart, if it has one.
    """

    config: Kosmos2Config
    sampling: SamplingConfig = SamplingConfig()
    loss_chunk: int = 0
    num_tasks: int = 0

    @property
    def module(self) -> Kosmos2:
        """The Linen module."""
        return Kosmos2(self.config)

    def init(self, rng: Array) -> dict[str, Any]:
        """Fresh parameters, float32, without the boxes that carry logical axis names."""
        return nn.meta.unbox(initial_params(self.config, rng))

    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: Array | None = None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Sum of weighted token losses, in nats, and sums to report.

        Sums, not means: the mean is over all tokens of a whole update (trap T-26).

        Args:
          params: of the model.
          batch: see the module.
          dropout_rng: None for no dropout.

        Returns:
          The sum, and float32 sums: "weight" of weights, "correct" of those of targets to which no
          other token is preferred; "location/loss", "location/weight" and "location/correct" of
          targets that are location tokens, if the model has any; numbers of "tokens", "examples"
          and "images" read; and, if the batch has `task_ids`, "task_loss" and "task_weight"
          [num_tasks].
        """
        scores, weights = self._scores(params, batch, dropout_rng), batch["loss_weights"]
        loss, weight = weighted_sums(scores.losses, weights)
        sums = {"weight": weight, "correct": jnp.sum(scores.best * weights)}
        return loss, {**sums, **self._sums_by_kind(scores, batch), **self._counts(batch)}

    def _sums_by_kind(self, scores: TargetScores, batch: Batch) -> dict[str, Array]:
        weights = batch["loss_weights"]
        losses, found = scores.losses * weights, {}
        if self.config.grid_size:
            first = self.config.decoder.vocab_size - self.config.grid_size**2
            location = batch["targets"] >= first
            for name, values in (
                ("loss", losses),
                ("weight", weights),
                ("correct", scores.best * weights),
            ):
                found[f"location/{name}"] = jnp.sum(jnp.where(location, values, 0.0))
        if "task_ids" in batch:
            for name, values in (("task_loss", losses), ("task_weight", weights)):
                zeros = jnp.zeros(self.num_tasks, jnp.float32)
                found[name] = zeros.at[batch["task_ids"]].add(values)
        return found

    def _counts(self, batch: Batch) -> dict[str, Array]:
        segments, slots = batch["segment_ids"], batch.get("image_slots")
        counts = {
            "tokens": jnp.sum(segments > 0),
            "examples": jnp.sum(jnp.max(segments, axis=1)),
        }
        if slots is not None:
            number = (jnp.max(slots, axis=1) + 1) // self.config.resampler.num_latents
            counts["images"] = jnp.sum(number)
        return {name: count.astype(jnp.float32) for name, count in counts.items()}

    def score_batch(self, params: Any, batch: Batch) -> Float[Array, " B"]:
        """Log-likelihood of each row's weighted targets, in nats: 0 at best."""
        losses = self._scores(params, batch, None).losses
        return -jnp.sum(losses * batch["loss_weights"], axis=-1)

    def predict_batch(
        self, params: Any, batch: Batch, sampling: SamplingConfig | None = None
    ) -> Generated:
        """Writes what follows each row's prompt: all that stands before its first weighted target.

        Args:
          params: of the model.
          batch: see the module; one example a row. Arrays of the host, or traced ones.
          sampling: instead of the model's own.

        Raises:
          ValueError: a row holds several examples.
        """
        return self.generate(params, prompts_of(batch), sampling)

    def generate(
        self, params: Any, prompts: PromptBatch, sampling: SamplingConfig | None = None
    ) -> Generated:
        """As `kosmos2_jax.inference.decoding.generate`, by default as `sampling` says.

        With `num_beams`, the best beam of each row.
        """
        sampling = sampling or self.sampling
        write = best_beams if sampling.num_beams > 1 else decoding.generate
        return write(self.config, params, prompts, sampling)

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
        size = self.config.decoder.vocab_size
        return score_targets(hidden, table, batch["targets"], self.loss_chunk, size)


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
