"""What this CPU can do: the speed of its memory, and the least time of a model's products.

Each product with weights is timed alone, in float32, by torch and as our model computes it, with
warm caches and nothing between; the fastest run of both counts, or the time in which its weights
come from memory, if that is longer. Whatever needs these products and computes them no faster
cannot be faster as a whole.
"""

from __future__ import annotations

import collections
import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from kosmos2_jax.config import Kosmos2Config

_REPEATS = 7


class Product(NamedTuple):
    """Rows of activations times weights [outputs, inputs]."""

    rows: int
    inputs: int
    outputs: int


def memory_speed() -> float:
    """Bytes a second at which all cores together read half a GiB."""
    import torch

    values = torch.ones(2**27)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        values.sum()
        times.append(time.perf_counter() - start)
    return values.nbytes / statistics.median(times[1:])


Products = collections.Counter[Product]


def step_products(config: Kosmos2Config, rows: int) -> Products:
    """The products of writing one more token in each row, those of attention left out."""
    decoder = config.decoder
    found = _layer_products(decoder.num_layers, rows, decoder.hidden_size, decoder.mlp_dim)
    found[Product(rows, decoder.hidden_size, decoder.vocab_size)] += 1
    return found


def reading_products(config: Kosmos2Config, rows: int, tokens: int) -> Products:
    """The products of reading `rows` prompts of a picture and so many tokens.

    Those of attention are left out. The last layer counts as a whole, the head for one token a row.
    """
    vision, decoder, latents = config.vision, config.decoder, config.resampler.num_latents
    width, patch = decoder.hidden_size, 3 * vision.patch_size**2
    seen = rows * vision.num_tokens
    found = _layer_products(vision.num_layers, seen, vision.hidden_size, vision.mlp_dim)
    found += _layer_products(decoder.num_layers, rows * tokens, width, decoder.mlp_dim)
    found[Product(rows * (vision.num_tokens - 1), patch, vision.hidden_size)] += 1
    found[Product(seen, vision.hidden_size, width)] += 1
    found[Product(seen + rows * latents, width, width)] += 2
    found[Product(rows * latents, width, width)] += 2
    found[Product(rows, width, decoder.vocab_size)] += 1
    return found


def _layer_products(layers: int, rows: int, size: int, hidden: int) -> Products:
    return collections.Counter(
        {
            Product(rows, size, size): 4 * layers,
            Product(rows, size, hidden): layers,
            Product(rows, hidden, size): layers,
        }
    )


def weight_bytes(products: Products) -> int:
    """How many bytes the float32 weights have."""
    return sum(number * 4 * one.inputs * one.outputs for one, number in products.items())


def least_seconds(products: Products, bytes_per_second: float) -> float:
    """Of all products one after the other, each as fast as it ever was, see the top of this file.

    Args:
      products: with their numbers.
      bytes_per_second: at which memory is read.
    """
    return sum(
        max(number * _fastest(one), weight_bytes(Products({one: number})) / bytes_per_second)
        for one, number in products.items()
    )


def _fastest(product: Product) -> float:
    import jax
    import numpy as np
    import torch

    from kosmos2_jax.models.products import RowKernel
    from kosmos2_jax.models.products import product as our_product

    rng = np.random.default_rng(0)
    x = rng.standard_normal((product.rows, product.inputs), np.float32)
    weight = rng.standard_normal((product.outputs, product.inputs), np.float32)
    theirs = torch.from_numpy(x), torch.from_numpy(weight)
    ours = jax.device_put(x), RowKernel(jax.device_put(weight))
    multiply = jax.jit(lambda x, kernel: our_product(x, kernel, np.float32))
    with torch.inference_mode():
        return min(
            *_times(lambda: torch.nn.functional.linear(*theirs)),
            *_times(lambda: multiply(*ours).block_until_ready()),
        )


def _times(run: Callable[[], Any]) -> Iterable[float]:
    run()
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        yield time.perf_counter() - start
