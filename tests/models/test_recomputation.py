"""Recomputed layers: the same values, gradients and dropout, less memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.config import REMATS, Kosmos2Config, preset
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.inference.model import Kosmos2Model

LENGTH = 140
# Recomputing changes what the compiler fuses, and so the last bits.
TOLERANCE = 1e-5


def config_of(scan_layers: bool, **settings: Any) -> Kosmos2Config:
    """A small model with dropout, whose heads are of a size that kernels take."""
    depth = 4 if scan_layers else 2  # unrolled layers take long to compile
    return preset("tiny").replace(
        vision={"hidden_size": 128, "num_heads": 2, "num_layers": depth // 2},
        decoder={"hidden_size": 128, "num_heads": 2, "num_layers": depth, "dropout": 0.1},
        scan_layers=scan_layers,
        **settings,
    )


@pytest.fixture(scope="module")
def batch() -> dict[str, jax.Array]:
    """Two packed rows of three examples and padding; a picture stands in the second example."""
    rng = np.random.default_rng(0)
    ends, shape = (50, 90, 130), (2, LENGTH)
    places = np.arange(LENGTH)
    segments = np.select([places < end for end in ends], [1, 2, 3], 0)
    starts = np.select([places < end for end in ends], [0, *ends[:-1]], ends[-1])
    slots = np.where((places >= 60) & (places < 65), places - 60, -1)
    images = rng.integers(0, 256, (2, 1, 28, 28, 3)).astype(np.uint8)
    return {
        "tokens": jnp.asarray(rng.integers(4, 120, shape), jnp.int32),
        "targets": jnp.asarray(rng.integers(4, 120, shape), jnp.int32),
        "loss_weights": jnp.broadcast_to((segments > 0) & (slots < 0), shape).astype(jnp.float32),
        "positions": jnp.broadcast_to(places - starts, shape).astype(jnp.int32),
        "segment_ids": jnp.broadcast_to(segments, shape).astype(jnp.int32),
        "image_slots": jnp.broadcast_to(slots, shape).astype(jnp.int32),
        "images": jnp.asarray(images),
    }


@dataclasses.dataclass(frozen=True)
class Run:
    """Loss under dropout, its gradient, and bytes of temporaries by the compiler's account."""

    loss: float
    gradients: Any
    temporaries: int


@functools.cache
def params_of(scan_layers: bool) -> Any:
    return Kosmos2Model(config_of(scan_layers)).init(jax.random.key(0))


@pytest.fixture(scope="module")
def run(batch) -> Callable[[str, bool, str], Run]:
    """`(remat, scan_layers, attention)` to what one step of training makes of the batch."""

    @functools.cache
    def step(remat: str, scan_layers: bool, attention: str) -> Run:
        config = config_of(scan_layers, attention=attention, remat=remat)
        model, params = Kosmos2Model(config), params_of(scan_layers)

        def loss(params: Any, batch: Any) -> jax.Array:
            return model.loss_fn(params, batch, jax.random.key(7))[0] / 100

        compiled = jax.jit(jax.value_and_grad(loss)).lower(params, batch).compile()
        value, gradients = compiled(params, batch)
        return Run(float(value), gradients, compiled.memory_analysis().temp_size_in_bytes)

    return step


@pytest.mark.parametrize(
    "remat, scan_layers, attention",
    [
        ("minimal", True, "xla"),
        ("full", True, "xla"),
        ("full", False, "xla"),
        ("attention", True, "splash"),
    ],
)
def test_loss_and_gradients_stay(remat, scan_layers, attention, run):
    """Dropout is drawn from the same keys, so that the noisy gradients are equal too."""
    found, plain = run(remat, scan_layers, attention), run("none", scan_layers, "xla")
    assert found.loss == pytest.approx(plain.loss, rel=TOLERANCE)
    leaves = jax.tree_util.tree_leaves_with_path(found.gradients)
    for (path, ours), exact in zip(leaves, jax.tree.leaves(plain.gradients), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("key/bias"):
            continue  # exactly zero but for rounding, as softmax takes it out again
        scale = float(jnp.abs(exact).max())
        assert scale > 0, name
        assert float(jnp.abs(ours - exact).max()) < TOLERANCE * scale, name


def test_more_recomputation_takes_less_memory(run):
    none, minimal, full = (run(remat, True, "xla") for remat in ("none", "minimal", "full"))
    assert full.temporaries < minimal.temporaries < none.temporaries
    assert full.temporaries < none.temporaries / 2


def test_unknown_recomputation_is_an_error():
    assert REMATS[0] == "none"
    with pytest.raises(ConfigError, match="unknown model.remat 'minimum'; did you mean minimal"):
        preset("tiny").replace(remat="minimum")
