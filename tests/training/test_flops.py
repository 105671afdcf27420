"""The formula against JAX's count of the traced model's products, and against published sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.config import preset
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.training.flops import PARTS, chip_of, model_flops, model_flops_utilisation

ROWS, LENGTH, IMAGES = 2, 24, 3


def products_of(jaxpr) -> int:
    """Operations of all `dot_general`s of a jaxpr, called ones included; loops are not known.

    Those with a single row or column are sums, as a LayerNorm's gradient takes them on CPU, and
    count as little as other sums.
    """
    total = 0
    for eqn in jaxpr.eqns:
        assert eqn.primitive.name not in ("scan", "while")
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left, right = (operand.aval for operand in eqn.invars)
            inner = int(np.prod([left.shape[axis] for axis in contracted]))
            if inner not in (left.size, right.size):
                total += 2 * inner * eqn.outvars[0].aval.size
        total += sum(products_of(sub) for sub in jax.core.jaxprs_in_params(eqn.params))
    return total


def batch_shapes(config):
    row = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    side = config.vision.image_size
    return {
        **dict.fromkeys(("tokens", "targets", "positions", "segment_ids", "image_slots"), row),
        "loss_weights": jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float32),
        "images": jax.ShapeDtypeStruct((ROWS, IMAGES, side, side, 3), jnp.uint8),
    }


def traced(config, trained):
    """Operations of loss and gradient of the trained parts, as JAX traces them."""
    model = Kosmos2Model(config)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    batch = batch_shapes(config)
    if not trained:
        return products_of(jax.make_jaxpr(lambda p, b: model.loss_fn(p, b)[0])(params, batch).jaxpr)

    def loss(chosen, rest, batch):
        return model.loss_fn({**rest, **chosen}, batch)[0]

    chosen = {part: params[part] for part in trained}
    rest = {part: params[part] for part in params if part not in trained}
    # Products that nothing needs are traced nevertheless; XLA would drop them.
    jaxpr, _ = jax.interpreters.partial_eval.dce_jaxpr(
        (closed := jax.make_jaxpr(jax.grad(loss))(chosen, rest, batch)).jaxpr,
        [True] * len(closed.out_avals),
    )
    return products_of(jaxpr)


@pytest.mark.parametrize("trained", [(), PARTS, ("resampler", "decoder"), ("resampler",)])
def test_equals_the_products_of_the_traced_model(trained):
    config = preset("tiny")
    flops = model_flops(config, ROWS, LENGTH, ROWS * IMAGES, trained)
    # Attention is traced over all pairs of tokens, of which the formula counts half.
    pairs = 2 * ROWS * config.decoder.num_layers * LENGTH**2 * config.decoder.hidden_size
    expected = traced(config, trained) - pairs * (3 if trained else 1)
    assert flops.total == expected


def test_full_size_is_what_the_parameters_say():
    """8.05 G a token without attention; the tower 0.162 T a picture and the connector 0.0077 T."""
    config = preset("kosmos2")
    flops = model_flops(config, 1, 2048, 1)
    matrices = 24 * (4 * 2048**2 + 2 * 2048 * 8192) + 65_037 * 2048
    attention = 3 * 2 * 24 * 2048**2 * 2048
    assert flops.decoder + flops.head == 6 * 2048 * matrices + attention
    forward = model_flops(config, 1, 2048, 1, trained=())
    assert forward.vision == pytest.approx(0.162e12, rel=0.01)
    assert forward.resampler == pytest.approx(0.0077e12, rel=0.01)
    frozen = model_flops(config, 1, 2048, 1, trained=("resampler", "decoder"))
    assert frozen.vision == forward.vision
    assert frozen.decoder == flops.decoder


def test_unknown_parts_are_named():
    with pytest.raises(ConfigError, match="tower.*vision"):
        model_flops(preset("tiny"), 1, 8, 1, trained=("tower",))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v4", "v4"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L4", "l4"),
    ],
)
def test_chips_are_known_by_their_kind(kind, name):
    assert chip_of(kind).name == name


def test_a_cpu_is_no_chip():
    assert chip_of("cpu") is None
    assert chip_of("NVIDIA L40S") is None


def test_utilisation_is_the_share_of_the_peak():
    chip = chip_of("TPU v5e")
    assert model_flops_utilisation(197e12 * 4, 2.0, 4, chip) == pytest.approx(0.5)
