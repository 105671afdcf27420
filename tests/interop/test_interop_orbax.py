"""Our own folder, restored straight into shardings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.interop import orbax_io
from kosmos2_jax.interop.convert import load
from kosmos2_jax.interop.layout import flatten


def test_everything_comes_back(
    small: Kosmos2Config,
    small_vocabulary: Kosmos2Vocabulary,
    random_params: Callable,
    tmp_path: Path,
):
    config = small.replace(scan_layers=True, decoder={"position": "xpos", "dropout": 0.25})
    params = random_params(config)
    orbax_io.save_folder(
        tmp_path / "ours", params, config, small_vocabulary, {"no_repeat_ngram_size": 5}
    )
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "kosmos2.json", "params", "tokenizer",
    ]  # fmt: skip
    checkpoint = load(tmp_path / "ours")
    assert checkpoint.config == config
    assert checkpoint.vocabulary == small_vocabulary
    assert checkpoint.generation == {"no_repeat_ngram_size": 5}
    found = flatten(checkpoint.params)
    assert set(found) == set(flatten(params))
    for path, leaf in flatten(params).items():
        assert isinstance(found[path], np.ndarray)
        assert found[path].tobytes() == leaf.tobytes()


def test_restores_into_shardings(small: Kosmos2Config, random_params: Callable, tmp_path: Path):
    params = random_params(small)
    on_device = jax.tree.map(jax.numpy.asarray, params)
    orbax_io.save_folder(tmp_path / "ours", on_device, small, None)
    mesh = jax.make_mesh((len(jax.devices()),), ("model",))

    def sharding(leaf: np.ndarray) -> jax.sharding.NamedSharding:
        split = leaf.ndim == 2 and leaf.shape[-1] % mesh.size == 0
        spec = jax.sharding.PartitionSpec(None, "model") if split else jax.sharding.PartitionSpec()
        return jax.sharding.NamedSharding(mesh, spec)

    shardings = jax.tree.map(sharding, params)
    restored = orbax_io.read_folder(tmp_path / "ours", shardings=shardings).params
    for path, leaf in flatten(restored).items():
        assert isinstance(leaf, jax.Array) and leaf.sharding == flatten(shardings)[path]
        np.testing.assert_array_equal(leaf, flatten(params)[path])
