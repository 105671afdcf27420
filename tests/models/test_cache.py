"""Reading text piece by piece through the key-value cache equals reading it at once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.interop.layout import stack_layers
from kosmos2_jax.models.decoder import empty_cache
from kosmos2_jax.models.kosmos2 import Kosmos2

PICTURE = 0


def read_in_pieces(
    config: Kosmos2Config, params: Any, batch: Any, ends: list[int], cache_length: int
) -> np.ndarray:
    """Scores at every place, from one `extend` for each piece of text."""
    model = Kosmos2(config)
    variables = {"params": params}
    tokens, _, _, images, slots = batch.inputs()
    soft = jax.jit(functools.partial(model.apply, method="encode_images"))(variables, images)

    @jax.jit
    def extend(
        variables: Any,
        soft: jax.Array,
        tokens: jax.Array,
        places: jax.Array,
        cache: Any,
        slots: Any,
    ) -> Any:
        hidden, cache = model.apply(variables, tokens, places, cache, soft, slots, method="extend")
        return model.apply(variables, hidden, method="logits"), cache

    cache = empty_cache(config.decoder, len(tokens), cache_length, scan_layers=config.scan_layers)
    parts, start = [], 0
    for end in [*ends, tokens.shape[1]]:
        places = jnp.broadcast_to(jnp.arange(start, end), (len(tokens), end - start))
        part, cache = extend(
            variables, soft, tokens[:, start:end], places, cache, slots[:, start:end]
        )
        parts.append(part)
        start = end
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("position, scan_layers", [("sinusoidal", False), ("xpos", True)])
def test_pieces_equal_the_whole(position, scan_layers, tiny_reference, make_batch, our_logits):
    config = tiny_reference.config.replace(decoder={"position": position}, scan_layers=scan_layers)
    params = tiny_reference.params
    params = stack_layers(params, config) if scan_layers else params
    batch = make_batch(config, [(PICTURE, 9), (4, PICTURE, 2)])
    expected = our_logits(config, params, batch)
    found = read_in_pieces(config, params, batch, [10, 11], cache_length=24)
    for row, length in enumerate(batch.lengths):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], rtol=0, atol=2e-5)
