"""xPos reads longer text than it was trained on, as its paper says; sinusoids do not.

Sun et al. 2022, "A Length-Extrapolatable Transformer": attention by xPos fades with distance
without the oscillation of a plain rotation (section 2.2, figure 1), and a model trained on short
text keeps its loss on longer text (section 4.3).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kosmos2_jax.config import DecoderConfig, preset
from kosmos2_jax.models.decoder import Context, Decoder
from kosmos2_jax.models.losses import token_losses
from kosmos2_jax.models.positions import apply_xpos

TRAINED_LENGTH = 2048  # of the released recipe


# The attention score that is to be expected of a query and a key, by distance --------------------


@pytest.fixture(scope="module")
def scores() -> dict[str, np.ndarray]:
    """Product of vectors of ones at distances 0..8191, per dimension, with and without scale."""
    dim = preset("kosmos2").decoder.hidden_size // preset("kosmos2").decoder.num_heads
    distances = jnp.arange(4 * TRAINED_LENGTH)[None]
    ones = jnp.ones((1, distances.shape[1], 1, dim))
    rotate = jax.jit(functools.partial(apply_xpos, is_key=False))
    queries = np.asarray(rotate(ones, distances))[0, :, 0]
    rates = 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    angles = np.arange(distances.shape[1])[:, None] * rates
    return {"xpos": queries.mean(-1), "rotation": np.cos(angles).mean(-1)}


def test_expected_score_fades_with_distance(scores):
    """The mean over each doubling of the distance falls, within training length and beyond."""
    starts = [2**power for power in range(4, 13)]
    means = [scores["xpos"][start : 2 * start].mean() for start in starts]
    assert all(later < 0.9 * earlier for earlier, later in zip(means, means[1:], strict=False))
    assert means[-1] < 0.05 * scores["xpos"][0]


def test_expected_score_does_not_oscillate_beyond_training_length(scores):
    beyond = {kind: values[TRAINED_LENGTH:] for kind, values in scores.items()}
    # Twice the length trained on: xPos still falls steadily, a plain rotation swings around zero.
    assert (beyond["xpos"][:TRAINED_LENGTH] > 0).all()
    assert beyond["rotation"][:TRAINED_LENGTH].min() < -0.1
    steps = {kind: np.abs(np.diff(values)).mean() for kind, values in beyond.items()}
    assert steps["xpos"] < 0.01 * steps["rotation"]


def test_expected_score_does_not_explode(scores):
    within, beyond = np.split(np.abs(scores["xpos"]), [TRAINED_LENGTH])
    assert beyond.max() < 0.1 * within[0]
    assert np.abs(scores["rotation"])[TRAINED_LENGTH:].max() > 3 * beyond.max()


# A model trained on short text ------------------------------------------------------------------

SHORT, LONG = 32, 128
LAG, KEPT = 3, 0.9
FIRST, WORDS = 4, 8


def echoes(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """Random words; each repeats the one three before it nine times out of ten."""
    tokens = rng.integers(FIRST, FIRST + WORDS, (rows, length))
    kept = rng.random((rows, length)) < KEPT
    for i in range(LAG, length):
        tokens[:, i] = np.where(kept[:, i], tokens[:, i - LAG], tokens[:, i])
    return tokens.astype(np.int32)


def losses_by_place(position: str, steps: int = 300, rows: int = 16) -> np.ndarray:
    """Trains two layers on text of length `SHORT`; gives the loss at each place of `LONG` text."""
    decoder = Decoder(
        DecoderConfig(
            vocab_size=FIRST + WORDS,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            mlp_dim=64,
            position=position,
            dropout=0.0,
        )
    )

    def run(decoder: Decoder, tokens: jax.Array) -> jax.Array:
        ones = jnp.ones_like(tokens)
        context = Context(jnp.cumsum(ones, axis=1) - 1, ones)
        hidden, _ = decoder(decoder.embed(tokens), context)
        return token_losses(decoder.logits(hidden)[:, :-1], tokens[:, 1:])

    def loss(params: dict, tokens: jax.Array) -> jax.Array:
        return decoder.apply(params, tokens, method=run)[:, LAG:].mean()

    optimizer = optax.adam(5e-3)

    @jax.jit
    def train(params: dict, batches: jax.Array) -> dict:
        def step(carry: tuple, tokens: jax.Array) -> tuple[tuple, None]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, tokens), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]

    rng = np.random.default_rng(0)
    batches = np.stack([echoes(rng, rows, SHORT) for _ in range(steps)])
    initial = jax.jit(functools.partial(decoder.init, method=run))(jax.random.key(0), batches[0])
    params = train(nn.meta.unbox(initial), batches)
    apply = jax.jit(functools.partial(decoder.apply, method=run))
    return np.asarray(apply(params, echoes(rng, 64, LONG))).mean(0)


def test_xpos_keeps_its_loss_at_four_times_the_length():
    xpos, sinusoidal = losses_by_place("xpos"), losses_by_place("sinusoidal")
    short, long = slice(LAG, SHORT - 1), slice(SHORT, None)
    # Both have learnt the rule; guessing costs ln 8 = 2.08 and the best possible is 0.47.
    assert xpos[short].mean() < 0.7 and sinusoidal[short].mean() < 1.0
    assert xpos[long].mean() < 1.6 * xpos[short].mean()
    assert sinusoidal[long].mean() > 2.5 * sinusoidal[short].mean()
    assert sinusoidal[long].mean() > 2.0 * xpos[long].mean()
