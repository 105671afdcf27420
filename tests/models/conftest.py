"""Batches of text and pictures for transformers' model and ours, and what each makes of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.config import Kosmos2Config, preset
from kosmos2_jax.models.attention import attend
from kosmos2_jax.models.kosmos2 import Kosmos2
from kosmos2_jax.models.layers import Linear
from kosmos2_jax.models.resampler import Resampler

PICTURE = 0  # in a row's layout; other numbers count text tokens
_BOS, _PAD, _OPEN, _CLOSE, _FIRST = 0, 1, 10, 11, 4

TINY = preset("tiny")
# Small models that differ in heads, depth, grid of patches and latents.
SHAPES: dict[str, Kosmos2Config] = {
    "tiny": TINY,
    "shallow": TINY.replace(
        vision={"hidden_size": 32, "num_layers": 3, "num_heads": 2, "patch_size": 7},
        resampler={"num_latents": 3},
        decoder={"hidden_size": 64, "num_layers": 1, "num_heads": 8, "mlp_dim": 96},
    ),
    "deep": TINY.replace(
        vision={"image_size": 42, "hidden_size": 16, "num_layers": 1, "num_heads": 4},
        resampler={"num_latents": 16},
        decoder={"hidden_size": 24, "num_layers": 6, "num_heads": 2, "mlp_dim": 40},
    ),
    "one_head": TINY.replace(
        vision={"num_heads": 1, "mlp_dim": 20},
        resampler={"num_latents": 1},
        decoder={"num_heads": 1, "vocab_size": 77},
    ),
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Right-padded rows. Pictures of a row beyond its own are zeros."""

    tokens: np.ndarray  # [B, L]
    positions: np.ndarray  # [B, L]
    segment_ids: np.ndarray  # [B, L], 1 or, for padding, 0
    image_slots: np.ndarray  # [B, L]
    images: np.ndarray  # [B, N, S, S, 3], normalised floats
    counts: tuple[int, ...]  # pictures of each row

    @property
    def lengths(self) -> np.ndarray:
        return self.segment_ids.sum(1)

    def inputs(self) -> tuple[jax.Array, ...]:
        """Arguments of our model."""
        ours = (self.tokens, self.positions, self.segment_ids, self.images, self.image_slots)
        return tuple(map(jnp.asarray, ours))

    def reference_inputs(self, rows: Sequence[int]) -> dict[str, Any]:
        """Arguments of transformers' model for these rows, cut to the longest of them."""
        import torch

        rows = list(rows)
        length = int(self.lengths[rows].max())
        pictures = np.concatenate([self.images[row, : self.counts[row]] for row in rows])
        inputs = {
            "input_ids": torch.from_numpy(self.tokens[rows, :length]).long(),
            "attention_mask": torch.from_numpy(self.segment_ids[rows, :length]),
        }
        if len(pictures):
            channels_first = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
            inputs["pixel_values"] = torch.from_numpy(channels_first)
            mask = (self.image_slots[rows, :length] >= 0).astype(np.int32)
            inputs["image_embeds_position_mask"] = torch.from_numpy(mask)
        return inputs


def _row(
    rng: np.random.Generator, config: Kosmos2Config, layout: Sequence[int]
) -> tuple[list[int], list[int]]:
    latents = config.resampler.num_latents
    tokens, slots, pictures = [_BOS], [-1], 0
    for count in layout:
        if count == PICTURE:
            tokens += [_OPEN, *range(_FIRST, _FIRST + latents), _CLOSE]
            first = pictures * latents
            slots += [-1, *range(first, first + latents), -1]
            pictures += 1
        else:
            tokens += rng.integers(_FIRST, config.decoder.vocab_size, count).tolist()
            slots += [-1] * count
    return tokens, slots


@pytest.fixture(params=SHAPES, scope="session")
def shape(request: pytest.FixtureRequest) -> Kosmos2Config:
    """Each of the small models."""
    return SHAPES[request.param]


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """`(config, layouts, seed=0)`; a layout such as (2, 0, 5) is 2 tokens, a picture, 5 tokens."""

    def make(config: Kosmos2Config, layouts: Sequence[Sequence[int]], seed: int = 0) -> Batch:
        rng = np.random.default_rng(seed)
        rows = [_row(rng, config, layout) for layout in layouts]
        length = max(len(tokens) for tokens, _ in rows)

        def padded(values: Sequence[Sequence[int]], filler: int) -> np.ndarray:
            return np.array([[*v, *[filler] * (length - len(v))] for v in values], np.int32)

        counts = tuple(list(layout).count(PICTURE) for layout in layouts)
        size = config.vision.image_size
        images = rng.normal(size=(len(rows), max(counts), size, size, 3)).astype(np.float32)
        for row, count in enumerate(counts):
            images[row, count:] = 0.0
        return Batch(
            tokens=padded([tokens for tokens, _ in rows], _PAD),
            positions=padded([range(len(tokens)) for tokens, _ in rows], 0),
            segment_ids=padded([[1] * len(tokens) for tokens, _ in rows], 0),
            image_slots=padded([slots for _, slots in rows], -1),
            images=images,
            counts=counts,
        )

    return make


@pytest.fixture(scope="session")
def our_logits() -> Callable[..., np.ndarray]:
    """`(config, params, batch)` to the scores of our model, [B, L, V]."""

    @functools.cache
    def compiled(config: Kosmos2Config) -> Callable[..., jax.Array]:
        return jax.jit(Kosmos2(config).apply)

    def run(config: Kosmos2Config, params: Any, batch: Batch) -> np.ndarray:
        return np.asarray(compiled(config)({"params": params}, *batch.inputs()))

    return run


@pytest.fixture(scope="session")
def reference_logits() -> Callable[..., list[np.ndarray]]:
    """`(model, batch, rows)` to the scores of transformers' model, one array without pads a row."""
    torch = pytest.importorskip("torch")

    def run(model: Any, batch: Batch, rows: Sequence[int]) -> list[np.ndarray]:
        inputs = batch.reference_inputs(rows)
        # Without pictures the whole model refuses; its text model is what is left.
        module = model if "pixel_values" in inputs else model.text_model
        with torch.no_grad():
            logits = module(**inputs).logits.numpy()
        return [logits[i, : batch.lengths[row]] for i, row in enumerate(rows)]

    return run


@pytest.fixture(scope="session")
def resampler_attention() -> Callable[..., np.ndarray]:
    """`(resampler, params, features)` to the probabilities of its attention, [B, H, Q, K]."""

    def run(resampler: Resampler, params: Any, features: np.ndarray) -> np.ndarray:
        apply = functools.partial(
            resampler.apply,
            capture_intermediates=lambda module, _: isinstance(module, Linear),
            mutable=["intermediates"],
        )
        states = jax.jit(apply)({"params": params}, features)[1]["intermediates"]["attention"]
        query, key = (states[name]["__call__"][0] for name in ("query", "key"))
        return _attention_map(query, key, resampler.num_heads)

    return run


def _attention_map(query: jax.Array, key: jax.Array, heads: int) -> np.ndarray:
    """Read off `attend` by giving it unit vectors as values, as many at a time as fit."""
    batch, queries, embed = query.shape
    keys, dim = key.shape[1], embed // heads
    query, key = (x.reshape(batch, -1, heads, dim) for x in (query, key))
    parts = []
    for start in range(0, keys, dim):
        units = np.eye(keys, dtype=np.float32)[:, start : start + dim]
        units = np.pad(units, ((0, 0), (0, dim - units.shape[1])))
        values = jnp.broadcast_to(units[None, :, None], (batch, keys, heads, dim))
        parts.append(attend(query, key, values).reshape(batch, queries, heads, dim))
    return np.concatenate(parts, axis=-1)[..., :keys].transpose(0, 2, 1, 3)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every test."""
    return np.random.default_rng(0)
