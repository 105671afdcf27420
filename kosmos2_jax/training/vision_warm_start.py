"""A short first training of the vision tower alone, for runs without pretrained vision.

Kosmos-2 starts from CLIP, whose states already tell what is where. Where there is no CLIP, the
tower first learns to predict, at each patch, which patch it is, the words of the phrases in whose
boxes it lies, and the edges of such a box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.grounding import Kosmos2Vocabulary, cells_to_box
from kosmos2_jax.models.grounded_init import ReadingHeads
from kosmos2_jax.models.kosmos2 import normalize_images
from kosmos2_jax.models.vision_transformer import VisionTransformer
from kosmos2_jax.training.optimizer import OptimizerConfig, make_optimizer

_RARE = -4.0  # first bias of the words: most are not at most patches
_NOWHERE = -1


class PatchLabels(NamedTuple):
    """What is true of each patch; P patches, row-major, V tokens of the vocabulary.

    Attributes:
      words: 1 where the patch lies in a box of a phrase that has the word, else 0.
      corners: left column, top row, right column and bottom row of that box, in cells, -1 outside
        of boxes.
    """

    words: Float[np.ndarray, "B P V"]
    corners: Int[np.ndarray, "B P 4"]


def train_vision(
    vision: Mapping[str, Any],
    config: Kosmos2Config,
    vocabulary: Kosmos2Vocabulary,
    batches: Iterable[Mapping[str, np.ndarray]],
    optimizer_config: OptimizerConfig,
) -> tuple[dict[str, Any], ReadingHeads]:
    """Trains the tower for `optimizer_config.total_steps` updates.

    Args:
      vision: parameters of the tower, fresh.
      config: of the model.
      vocabulary: of the batches.
      batches: ordinary training batches; rows without grounded phrases do not count.
      optimizer_config: of this training alone.

    Returns:
      The trained parameters of the tower, and the heads that read it.
    """
    module = VisionTransformer(config.vision, config.scan_layers)
    optimizer = make_optimizer(optimizer_config)
    width = config.vision.hidden_size
    num_places = config.vision.grid**2
    params: dict[str, Any] = {
        "vision": vision,
        "words": jnp.zeros((width, vocabulary.vocab_size)),
        "corners": jnp.zeros((4, width, config.grid_size)),
        "place": jnp.zeros((width, num_places)),
    }

    def loss_fn(params: Any, images: Array, labels: PatchLabels) -> Array:
        states = module.apply({"params": params["vision"]}, normalize_images(images))
        # States have length 1; the heads read them at the scale of a layer norm's output.
        states = states[:, 1:] * width**0.5
        inside = (labels.corners[..., 0] != _NOWHERE).astype(jnp.float32)
        grounded = inside.any(axis=1, keepdims=True)
        words = optax.sigmoid_binary_cross_entropy(states @ params["words"] + _RARE, labels.words)
        edges = jnp.einsum("bpd,cdg->bpcg", states, params["corners"])
        # Outside of boxes every edge is as likely as any other.
        corners = optax.softmax_cross_entropy(
            edges,
            jnp.where(
                inside[..., None, None] > 0,
                jax.nn.one_hot(labels.corners, config.grid_size),
                1 / config.grid_size,
            ),
        ).sum(-1)
        place = _cross_entropy(
            states @ params["place"], jnp.broadcast_to(jnp.arange(num_places), inside.shape)
        )
        what = jnp.sum((words.sum(-1) + corners) * grounded)
        return what / jnp.maximum(jnp.sum(inside), 1.0) + place.mean()

    @jax.jit
    def step(params: Any, opt_state: Any, *batch: Any) -> tuple[Any, Any, Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state = optimizer.init(params)
    seen = np.zeros(vocabulary.vocab_size, bool)
    bar = tqdm(range(optimizer_config.total_steps), desc="vision", unit="update", mininterval=2.0)
    for i, batch in zip(bar, batches, strict=False):
        labels = patch_labels(batch, vocabulary, config.vision.grid)
        seen |= labels.words.any(axis=(0, 1))
        params, opt_state, loss = step(params, opt_state, batch["images"][:, 0], labels)
        if i % 100 == 99:
            bar.set_postfix(loss=f"{float(loss):.3f}")
    words, corners = (np.asarray(params[name], np.float64) for name in ("words", "corners"))
    return params["vision"], ReadingHeads(words, seen, corners)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def patch_labels(
    batch: Mapping[str, np.ndarray], vocabulary: Kosmos2Vocabulary, grid: int
) -> PatchLabels:
    """Reads the labels of patches off the grounded phrases of a batch.

    Args:
      batch: `tokens` and `targets`, one example with one picture a row.
      vocabulary: of the batch.
      grid: patches a side.
    """
    sequences = np.concatenate([batch["tokens"], batch["targets"][:, -1:]], axis=1)
    shape = (len(sequences), grid, grid)
    words = np.zeros((*shape, vocabulary.vocab_size), np.float32)
    corners = np.full((*shape, 4), _NOWHERE, np.int32)
    for row, ids in enumerate(sequences):
        for phrase, cells in _grounded_phrases(ids, vocabulary):
            for pair in zip(cells[::2], cells[1::2], strict=True):
                box = cells_to_box(*pair, vocabulary.grid_size)
                x1, y1 = int(box.x1 * grid), int(box.y1 * grid)
                x2, y2 = math.ceil(box.x2 * grid), math.ceil(box.y2 * grid)
                words[row, y1:y2, x1:x2, phrase] = 1.0
                (top, left), (bottom, right) = (divmod(c, vocabulary.grid_size) for c in pair)
                corners[row, y1:y2, x1:x2] = left, top, right, bottom
    flat = (len(sequences), grid * grid, -1)
    return PatchLabels(words.reshape(flat), corners.reshape(flat))


def _grounded_phrases(
    ids: np.ndarray, vocabulary: Kosmos2Vocabulary
) -> list[tuple[list[int], list[int]]]:
    """Word ids and cells of each phrase in a well-formed sequence."""
    found = []
    for start in np.flatnonzero(ids == vocabulary.phrase_id):
        end = start + int(np.argmax(ids[start:] == vocabulary.end_phrase_id))
        close = end + int(np.argmax(ids[end:] == vocabulary.end_object_id))
        cells = [
            int(i) - vocabulary.first_location_id
            for i in ids[end:close]
            if vocabulary.is_location(int(i))
        ]
        found.append((ids[start + 1 : end].tolist(), cells))
    return found
