"""int8 and bfloat16 weights: products beside NumPy, a whole model beside itself in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.decoding import prefill
from kosmos2_jax.inference.predictor import Predictor
from kosmos2_jax.inference.prompt_batch import batch_prompts
from kosmos2_jax.inference.quantization import place_parameters, stored_bytes
from kosmos2_jax.interop.hugging_face import write_folder
from kosmos2_jax.models.products import Int8Kernel, RowKernel, product, quantize_rows


def numpy_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers and scales, restated."""
    scale = np.abs(x).max(1, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(x / scale).astype(np.int64), scale


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 70])
def test_int8_products_are_those_of_numpy(rows: int):
    rng = np.random.default_rng(rows)
    x, weight = (rng.normal(size=(n, 96)).astype(np.float32) for n in (rows, 40))
    x[0, 3] = 9.0  # an outlier, as large models have them
    kernel = Int8Kernel(*quantize_rows(jnp.asarray(weight)))
    got = jax.jit(product, static_argnums=2)(jnp.asarray(x), kernel, jnp.float32)
    (whole, scale), (whole_weight, weight_scale) = numpy_rows(x), numpy_rows(weight)
    expected = (whole @ whole_weight.T) * scale.astype(np.float64) * weight_scale.T
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert np.abs(got - exact).max() < 0.02 * np.abs(exact).max()


def test_an_output_of_zeros_stays_zero():
    kernel = Int8Kernel(*quantize_rows(jnp.zeros((3, 8))))
    np.testing.assert_array_equal(product(jnp.ones((2, 8)), kernel, jnp.float32), 0.0)


@pytest.mark.parametrize("rows", [1, 2, 128, 129])
def test_float_products_are_those_of_numpy(rows: int):
    rng = np.random.default_rng(rows)
    x, weight = (rng.normal(size=(n, 96)).astype(np.float32) for n in (rows, 40))
    kernel = RowKernel(jnp.asarray(weight))
    got = jax.jit(product, static_argnums=2)(jnp.asarray(x), kernel, jnp.float32)
    np.testing.assert_allclose(got, x.astype(np.float64) @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def prompt_logits(small_config: Kosmos2Config, random_prompt: Callable) -> Callable:
    """`(params, config)`: scores after two prompts of different lengths."""
    rng = np.random.default_rng(0)
    prompts = [random_prompt(small_config, rng, parts) for parts in (["image", 3], [6])]
    batch = batch_prompts(prompts, max_length=64)

    def run(params: dict, config: Kosmos2Config = small_config) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            logits, _ = jax.jit(prefill, static_argnums=0, static_argnames="cache_length")(
                config, params, *batch, cache_length=64
            )
        return np.asarray(logits)

    return run


def test_the_layout_changes_no_scores(
    small_config: Kosmos2Config, random_params: Callable, prompt_logits: Callable
):
    params = random_params(small_config)
    expected, got = prompt_logits(params), prompt_logits(place_parameters(params))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_int8_stays_near_float32_in_less_than_half_the_memory(
    small_config: Kosmos2Config, random_params: Callable, prompt_logits: Callable
):
    params = random_params(small_config)
    quantized = place_parameters(params, "int8")
    assert stored_bytes(quantized) < stored_bytes(params) / 2
    expected, got = (
        jax.nn.log_softmax(prompt_logits(p)).astype(np.float64) for p in (params, quantized)
    )
    divergence = (np.exp(expected) * (expected - got)).sum(-1)
    entropy = -(np.exp(expected) * expected).sum(-1)
    assert (divergence < 0.05 * entropy).all(), (divergence, entropy)


def test_bfloat16_stays_near_float32(
    small_config: Kosmos2Config, random_params: Callable, prompt_logits: Callable
):
    params = random_params(small_config)
    half = place_parameters(params, dtype="bfloat16")
    expected = jax.nn.log_softmax(prompt_logits(params)).astype(np.float64)
    got = jax.nn.log_softmax(prompt_logits(half, small_config.replace(dtype="bfloat16")))
    divergence = (np.exp(expected) * (expected - got)).sum(-1)
    entropy = -(np.exp(expected) * expected).sum(-1)
    assert (divergence < 0.05 * entropy).all(), (divergence, entropy)


def test_a_predictor_reads_a_checkpoint_into_fewer_bytes(
    small_config: Kosmos2Config,
    small_vocabulary: Kosmos2Vocabulary,
    random_params: Callable,
    tmp_path: Path,
):
    folder = tmp_path / "model"
    write_folder(folder, random_params(small_config), small_config, small_vocabulary)
    whole = Predictor.from_pretrained(folder, max_new_tokens=2)
    small = Predictor.from_pretrained(folder, max_new_tokens=2, quantization="int8")
    assert stored_bytes(small.params) < stored_bytes(whole.params) / 2
    table = small.params["decoder"]["token_embedding"]
    assert table.weight.dtype == jnp.int8
    black = np.zeros((8, 8, 3), np.uint8)
    assert small.describe(black).text.startswith("An image of")
    half = Predictor.from_pretrained(folder, max_new_tokens=2, dtype="bfloat16")
    assert stored_bytes(half.params) < 0.55 * stored_bytes(whole.params)
    assert half.config.dtype == "bfloat16"
    assert half.describe(black).text.startswith("An image of")
    with pytest.raises(ConfigError, match="int8"):
        Predictor.from_pretrained(folder, quantization="int9")
    with pytest.raises(ConfigError, match="float32, bfloat16"):
        Predictor.from_pretrained(folder, dtype="half")
