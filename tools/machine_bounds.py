"""What this CPU can do: the speed of its memory, and the least time of a model's products.

Each product with weights is timed alone, in float32, by torch and as our model computes it, with
warm caches and nothing between; the fastest run of both counts. Whatever needs these products and
computes them no faster cannot be faster as a whole.
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


def step_weights(config: Kosmos2Config) -> int:
    """How many weights the decoder reads to write a token."""
    decoder = config.decoder
    layer = 4 * decoder.hidden_size**2 + 2 * decoder.hidden_size * decoder.mlp_dim
    return decoder.num_layers * layer + decoder.vocab_size * decoder.hidden_size


def reading_products(config: Kosmos2Config, rows: int, tokens: int) -> collections.Counter[Product]:
    """The products of reading `rows` prompts of a picture and so many tokens, with their numbers.

    Those of attention are left out. The last layer counts as a whole, the head for one token a row.
    """
    vision, latents = config.vision, config.resampler.num_latents
    width, patch = config.decoder.hidden_size, 3 * config.vision.patch_size**2
    seen, read = rows * vision.num_tokens, rows * tokens
    found: collections.Counter[Product] = collections.Counter()
    found[Product(rows * (vision.num_tokens - 1), patch, vision.hidden_size)] += 1
    for parts, count, size, hidden in (
        (vision.num_layers, seen, vision.hidden_size, vision.mlp_dim),
        (config.decoder.num_layers, read, width, config.decoder.mlp_dim),
    ):
        found[Product(count, size, size)] += 4 * parts
        found[Product(count, size, hidden)] += parts
        found[Product(count, hidden, size)] += parts
    found[Product(seen, vision.hidden_size, width)] += 1
    found[Product(seen + rows * latents, width, width)] += 2
    found[Product(rows * latents, width, width)] += 2
    found[Product(rows, width, config.decoder.vocab_size)] += 1
    return found


def least_seconds(products: collections.Counter[Product]) -> float:
    """Of all products one after the other, each as fast as it ever was."""
    return sum(number * _fastest(product) for product, number in products.items())


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
