"""Counts, logical axes and layouts of the parameters; nothing of full size is allocated."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.config import PRESETS, Kosmos2Config, preset
from kosmos2_jax.interop.layout import flatten, stack_layers, unstack_layers
from kosmos2_jax.interop.names import HUGGING_FACE
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.partitioning import LOGICAL_RULES

# Spec 1.9.
COUNTS = {
    "vision": 303_179_776,
    "vision/pre_norm": 2_048,
    "vision/post_norm": 2_048,
    "vision/layers_0": 12_596_224,
    "vision/layers_23": 12_596_224,
    "resampler": 19_015_680,
    "resampler/projection": 2_099_200,
    "resampler/latents": 131_072,
    "resampler/attention": 16_785_408,
    "decoder": 1_342_289_920,
    "decoder/token_embedding": 133_195_776,
    "decoder/layers_0": 50_378_752,
    "decoder/layers_23": 50_378_752,
    "decoder/final_norm": 4_096,
    "": 1_664_485_376,
}
VISION_EMBEDDINGS = ("class_embedding", "patch_embedding", "position_embedding")


def abstract_params(config: Kosmos2Config) -> Any:
    """Shapes in their boxes."""
    return jax.eval_shape(lambda key: initial_params(config, key), jax.random.key(0))


def count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def subtree(params: Any, path: str) -> Any:
    for name in filter(None, path.split("/")):
        params = params[name]
    return params


@pytest.fixture(scope="module")
def full_size() -> Any:
    """Unboxed shapes of the released model."""
    return nn.meta.unbox(abstract_params(preset("kosmos2")))


@pytest.mark.parametrize("path", COUNTS, ids=lambda path: path or "total")
def test_counts_of_the_released_model(full_size, path):
    assert count(subtree(full_size, path)) == COUNTS[path]


def test_count_of_vision_embeddings(full_size):
    assert sum(count(full_size["vision"][name]) for name in VISION_EMBEDDINGS) == 866_304


@pytest.mark.parametrize(
    "name, total",
    [
        ("kosmos2_xpos", 1_664_485_376),  # xPos has no parameters
        ("kosmos1", 1_662_375_936),
    ],
)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_counts_of_the_other_presets(name, total, scan_layers):
    config = preset(name).replace(scan_layers=scan_layers)
    assert count(abstract_params(config)) == total


def test_presets_record_their_positions():
    positions = {name: config.decoder.position for name, config in PRESETS.items()}
    assert positions == {
        "kosmos2": "sinusoidal",
        "kosmos2_xpos": "xpos",
        "kosmos1": "xpos",
        "tiny": "sinusoidal",
    }


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_are_those_of_the_interop_tables(name):
    config = preset(name)
    found = flatten(nn.meta.unbox(abstract_params(config)))
    expected = {entry.ours: entry.shape for entry in HUGGING_FACE.entries(config)}
    assert {path: leaf.shape for path, leaf in found.items()} == expected
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", ["kosmos2", "tiny"])
def test_every_parameter_has_logical_axes(name, scan_layers):
    boxed = abstract_params(preset(name).replace(scan_layers=scan_layers))
    known = {axis for axis, _ in LOGICAL_RULES}
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box):
        where = jax.tree_util.keystr(path)
        assert is_box(leaf), where
        assert len(leaf.names) == leaf.value.ndim, where
        named = [axis for axis in leaf.names if axis is not None]
        assert named and set(named) <= known, where
        assert ("layers" in named) == (scan_layers and "'layers'" in where), where


def test_stacking_is_undone_by_unstacking(tiny_reference):
    config, params = tiny_reference.config, tiny_reference.params
    stacked = stack_layers(params, config)
    expected = nn.meta.unbox(abstract_params(config.replace(scan_layers=True)))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(lambda leaf: leaf.shape, expected)
    again = flatten(unstack_layers(stacked, config))
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)
