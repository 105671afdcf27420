"""Kosmos-2's pretraining on one host of eight TPU v5e chips, 16 GB each."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import kosmos2_pretrain


def get_config() -> ConfigDict:
    """The same updates as on a pod, worked through in 32 parts of a row a chip.

    A chip holds an eighth of parameters, moments and two gradients, 4.2 GB, and needs 6.8 GiB in
    all, as `kosmos2 compile` found.
    """
    config = kosmos2_pretrain.get_config()
    config.mesh.fsdp = 8
    config.micro_batches = 32
    return config
