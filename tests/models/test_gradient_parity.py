"""The loss and the gradient of every tensor against transformers' Kosmos-2, in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.interop.layout import flatten, stack_layers, unstack_layers
from kosmos2_jax.interop.names import HUGGING_FACE
from kosmos2_jax.models.kosmos2 import Kosmos2
from kosmos2_jax.models.losses import token_losses, weighted_sums

torch = pytest.importorskip("torch")

TOLERANCE = 1e-4  # largest difference over largest value of each tensor; never to be relaxed
PICTURE = 0
RAGGED = [(PICTURE, 9), (3, PICTURE, 12, PICTURE, 4), (14,)]


def loss_weights(batch: Any) -> np.ndarray:
    """1 for targets that are text: the last token has none, padding and picture slots no loss."""
    weights = (batch.segment_ids[:, 1:] > 0) & (batch.image_slots[:, 1:] < 0)
    return weights.astype(np.float32)


def our_loss_and_gradients(
    config: Kosmos2Config, params: Any, batch: Any
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean loss over all weighted targets, by a model that never sees the last token."""
    inputs = [array[:, :-1] if array.ndim == 2 else array for array in batch.inputs()]

    def loss(params: Any, inputs: Any, targets: jax.Array, weights: jax.Array) -> jax.Array:
        logits = Kosmos2(config).apply({"params": params}, *inputs)
        total, count = weighted_sums(token_losses(logits, targets), weights)
        return total / count

    run = jax.jit(jax.value_and_grad(loss))
    value, gradients = run(params, inputs, batch.tokens[:, 1:], loss_weights(batch))
    return float(value), gradients


def reference_loss_and_gradients(model: Any, batch: Any) -> tuple[float, dict[str, np.ndarray]]:
    """transformers shifts the labels itself and takes their mean."""
    labels = np.where(loss_weights(batch) > 0, batch.tokens[:, 1:], -100)
    labels = np.concatenate([np.full_like(labels[:, :1], -100), labels], axis=1)
    inputs = batch.reference_inputs(range(len(labels)))
    model.zero_grad()
    loss = model(**inputs, labels=torch.from_numpy(labels).long()).loss
    loss.backward()
    gradients = {name: tensor.grad.numpy().copy() for name, tensor in model.named_parameters()}
    model.zero_grad()
    return loss.item(), gradients


def relative_differences(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], config: Kosmos2Config
) -> dict[str, float]:
    """Largest difference over largest value, by name of our tensor.

    A key's bias adds the same to every score of a query, which softmax takes out again: its
    gradient is exactly zero, both models find rounding errors, and the kernel of the same map is
    what those are measured by.
    """
    found = {}
    entries = {entry.ours: entry for entry in HUGGING_FACE.entries(config)}
    for path, entry in entries.items():
        expected = entry.to_ours(theirs[entry.foreign])
        scale = np.abs(expected).max()
        if path.endswith("key/bias"):
            kernel = theirs[entries[path.replace("bias", "kernel")].foreign]
            assert scale < 1e-4 * np.abs(kernel).max(), path
            scale = np.abs(kernel).max()
        assert scale > 1e-7, f"{path} has no gradient, so that nothing is compared"
        found[path] = float(np.abs(np.asarray(ours[path]) - expected).max() / scale)
    return found


@pytest.fixture(scope="module")
def ragged_gradients(make_reference, make_batch) -> Callable[[Kosmos2Config], tuple]:
    """Loss and gradients of our model for `RAGGED`, computed once for each config."""

    @functools.cache
    def run(config: Kosmos2Config) -> tuple[float, dict[str, np.ndarray]]:
        batch = make_batch(config, RAGGED, seed=3)
        return our_loss_and_gradients(config, make_reference(config).params, batch)

    return run


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loss_and_every_gradient(shape, attention, make_reference, make_batch, ragged_gradients):
    model = make_reference(shape, attention=attention).model
    loss, gradients = ragged_gradients(shape)
    batch = make_batch(shape, RAGGED, seed=3)
    expected_loss, expected = reference_loss_and_gradients(model, batch)
    assert expected_loss > 1.0
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    differences = relative_differences(flatten(gradients), expected, shape)
    assert len(differences) == len(dict(model.named_parameters()))
    too_large = {path: value for path, value in differences.items() if value > TOLERANCE}
    assert not too_large


def test_scanned_gradients_equal_unrolled_ones(tiny_reference, make_batch, ragged_gradients):
    config = tiny_reference.config
    loss, gradients = ragged_gradients(config)
    scanned = config.replace(scan_layers=True)
    stacked = stack_layers(tiny_reference.params, scanned)
    batch = make_batch(config, RAGGED, seed=3)
    scan_loss, scan_gradients = our_loss_and_gradients(scanned, stacked, batch)
    assert scan_loss == pytest.approx(loss, rel=1e-5)
    found = flatten(unstack_layers(scan_gradients, scanned))
    for path, expected in flatten(gradients).items():
        scale = max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(found[path], expected, rtol=0, atol=1e-5 * scale, err_msg=path)


def test_pad_row_learns_from_the_softmax_alone(tiny_reference, make_batch, ragged_gradients):
    """The tied head pushes the padding token's row down; its look-ups move nothing (trap T-13)."""
    config = tiny_reference.config
    batch = make_batch(config, RAGGED, seed=3)
    assert (batch.tokens == 1).any()
    _, gradients = ragged_gradients(config)
    _, expected = reference_loss_and_gradients(tiny_reference.model, batch)
    ours = np.asarray(gradients["decoder"]["token_embedding"])[1]
    theirs = expected[HUGGING_FACE.embedding][1]
    assert np.abs(theirs).max() > 1e-5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())
