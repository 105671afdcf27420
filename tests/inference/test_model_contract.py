"""`Kosmos2Model`: loss and scores by hand, predictions of a batch of features."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from kosmos2_jax.config import preset
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.prompt_batch import batch_prompts
from kosmos2_jax.inference.sampling import SamplingConfig

CONFIG = preset("tiny").replace(vision={"num_layers": 1}, decoder={"num_layers": 1})
MODEL = Kosmos2Model(CONFIG, SamplingConfig(6))


@pytest.fixture(scope="module")
def params(random_params) -> dict:
    return random_params(CONFIG)


def test_init_gives_unboxed_parameters(params):
    fresh = jax.eval_shape(MODEL.init, jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: leaf.shape, fresh)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, params)


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Two rows of different lengths: a picture, a prompt and an answer; padding."""
    rng = np.random.default_rng(0)
    latents, length = CONFIG.resampler.num_latents, 24
    slots = np.full((2, length), -1, np.int32)
    slots[:, 2 : 2 + latents] = np.arange(latents)
    lengths = np.array([[24], [17]])
    inside = np.arange(length)[None] < lengths
    weights = np.zeros((2, length), np.float32)
    weights[0, 12:24], weights[1, 10:17] = 1.0, 0.5
    ids = rng.integers(4, 120, (2, length + 1)).astype(np.int32)
    return {
        "tokens": np.where(inside, ids[:, :-1], 1),
        "targets": np.where(inside, ids[:, 1:], 1),
        "loss_weights": weights,
        "positions": np.where(inside, np.arange(length, dtype=np.int32), 0),
        "segment_ids": inside.astype(np.int32),
        "image_slots": np.where(inside, slots, -1),
        "images": rng.integers(0, 256, (2, 1, 28, 28, 3), dtype=np.uint8),
    }


def test_loss_and_scores_are_sums_over_weighted_targets(params, batch):
    names = ("tokens", "positions", "segment_ids", "images", "image_slots")
    logits = jax.jit(MODEL.module.apply)({"params": params}, *(batch[name] for name in names))
    log_probs = log_softmax(np.asarray(logits, np.float64), axis=-1)
    chosen = np.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
    weights = batch["loss_weights"]
    loss, sums = jax.jit(MODEL.loss_fn)(params, batch)
    np.testing.assert_allclose(loss, -(chosen * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["weight"], 12 + 3.5)
    right = (log_probs.argmax(-1) == batch["targets"]) * weights
    np.testing.assert_allclose(sums["correct"], right.sum())
    scores = jax.jit(MODEL.score_batch)(params, batch)
    np.testing.assert_allclose(scores, (chosen * weights).sum(-1), rtol=1e-5)
    best = {**batch, "targets": np.asarray(logits.argmax(-1), np.int32)}
    np.testing.assert_allclose(jax.jit(MODEL.loss_fn)(params, best)[1]["correct"], 12 + 3.5)


def test_sums_by_kind_and_task_are_those_of_their_targets_alone(params, batch):
    """The loss of a batch in which nothing else has weight."""
    rng = np.random.default_rng(2)
    batch = {**batch, "task_ids": rng.integers(0, 3, batch["targets"].shape, np.int32)}
    loss_fn = jax.jit(Kosmos2Model(CONFIG, num_tasks=3).loss_fn)

    def alone(mask: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        return loss_fn(params, {**batch, "loss_weights": batch["loss_weights"] * mask})

    loss, sums = loss_fn(params, batch)
    location = batch["targets"] >= CONFIG.decoder.vocab_size - CONFIG.grid_size**2
    assert (location & (batch["loss_weights"] > 0)).any()
    found, rest = alone(location)
    np.testing.assert_allclose(sums["location/loss"], found, rtol=1e-6)
    for name in ("weight", "correct"):
        np.testing.assert_allclose(sums[f"location/{name}"], rest[name], rtol=1e-6)
    for task in range(3):
        found, rest = alone(batch["task_ids"] == task)
        np.testing.assert_allclose(sums["task_loss"][task], found, rtol=1e-6)
        np.testing.assert_allclose(sums["task_weight"][task], rest["weight"], rtol=1e-6)
    counts = [float(sums[name]) for name in ("tokens", "examples", "images")]
    assert counts == [24 + 17, 2, 2]


def test_dropout_follows_its_key(params, batch):
    loss = jax.jit(MODEL.loss_fn)
    first, again, other = (float(loss(params, batch, jax.random.key(i))[0]) for i in (1, 1, 2))
    assert first == again and first != other and first != float(loss(params, batch)[0])


def test_a_batch_without_pictures(params, batch):
    text = {name: value for name, value in batch.items() if not name.startswith("image")}
    assert np.isfinite(float(jax.jit(MODEL.loss_fn)(params, text)[0]))


def test_prediction_continues_what_stands_before_the_first_target(params, batch, random_prompt):
    rng = np.random.default_rng(1)
    rows = [random_prompt(CONFIG, rng, ["image", n]) for n in (4, 2)]
    expected = MODEL.generate(params, batch_prompts(rows, max_length=100))
    features = {name: value.copy() for name, value in batch.items()}
    for i, row in enumerate(rows):
        n = len(row.ids)
        features["tokens"][i, :n] = row.ids
        features["image_slots"][i] = -1
        features["image_slots"][i, :n] = row.image_slots
        features["images"][i] = row.images[0]
        features["loss_weights"][i] = 0
        features["loss_weights"][i, n - 1 : n + 3] = 1
    found = MODEL.predict_batch(params, features)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert found.tokens.shape == (2, 6)
    # The answer must not leak into the prompt, nor may other targets matter.
    for i, row in enumerate(rows):
        features["tokens"][i, len(row.ids) :] = 7
    np.testing.assert_array_equal(MODEL.predict_batch(params, features).tokens, expected.tokens)


def test_packed_rows_cannot_be_continued(params, batch):
    packed = {**batch, "segment_ids": batch["segment_ids"] * 2}
    with pytest.raises(ValueError, match="one example a row"):
        MODEL.predict_batch(params, packed)
