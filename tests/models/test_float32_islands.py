"""What stays float32 when activations are bfloat16 (spec 1.6), read off the traced program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from kosmos2_jax.config import preset
from kosmos2_jax.inference.model import Kosmos2Model

# Softmax and log-likelihood take exp and log, norms rsqrt, GELU erf, positions sin and cos. (CLIP's
# QuickGELU, a logistic, is in the dtype of the activations, as in the reference.)
ISLANDS = {"exp", "exp2", "log", "rsqrt", "erf", "sin", "cos", "reduce_max", "cumsum"}
LENGTH = 140


def equations(jaxpr: Any) -> Iterator[Any]:
    """All of a program's equations, also those of the programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr),
        ):
            if isinstance(part, jax.extend.core.ClosedJaxpr):
                yield from equations(part.jaxpr)
            elif isinstance(part, jax.extend.core.Jaxpr):
                yield from equations(part)


@pytest.mark.parametrize("attention", ["xla", "splash"])
def test_islands_are_float32(attention):
    config = preset("tiny").replace(
        dtype="bfloat16",
        attention=attention,
        scan_layers=True,
        remat="full",
        decoder={"position": "xpos"},
    )
    model = Kosmos2Model(config, loss_chunk=64)
    params = jax.eval_shape(model.init, jax.random.key(0))
    row = jax.ShapeDtypeStruct((2, LENGTH), jnp.int32)
    names = ("tokens", "targets", "positions", "segment_ids", "image_slots")
    batch = {
        **dict.fromkeys(names, row),
        "loss_weights": jax.ShapeDtypeStruct((2, LENGTH), jnp.float32),
        "images": jax.ShapeDtypeStruct((2, 1, 28, 28, 3), jnp.uint8),
    }

    def gradient(params: Any, batch: Any) -> Any:
        return jax.grad(lambda p: model.loss_fn(p, batch, jax.random.key(0))[0])(params)

    program = jax.make_jaxpr(gradient)(params, batch)
    assert {value.dtype for value in program.out_avals} == {jnp.dtype("float32")}
    found = [e for e in equations(program.jaxpr) if e.primitive.name in ISLANDS]
    kinds = {equation.primitive.name for equation in found}
    assert {"exp", "log", "rsqrt", "erf", "sin", "cos"} <= kinds
    narrow = {
        (equation.primitive.name, str(variable.aval.dtype))
        for equation in found
        for variable in equation.invars
        if getattr(variable.aval, "dtype", None) == jnp.bfloat16
    }
    assert not narrow
    products = [e for e in equations(program.jaxpr) if e.primitive.name == "dot_general"]
    halves = [e for e in products if all(v.aval.dtype == jnp.bfloat16 for v in e.invars)]
    assert len(halves) > len(products) / 2, "most products are in half precision"
