"""Kosmos-2's pretraining on a slice of 256 TPU v5e chips."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import kosmos2_pretrain


def get_config() -> ConfigDict:
    """A row a chip, parameters cut over all of them, and data for 64 hosts of four chips."""
    config = kosmos2_pretrain.get_config()
    config.mesh.fsdp = 256
    config.data.streams = 64
    return config
