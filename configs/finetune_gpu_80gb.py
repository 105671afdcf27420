"""Fine-tuning with all parameters on one GPU of 80 GB."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import finetune


def get_config() -> ConfigDict:
    """Parameters, moments and two gradients 33 GB, eight rows some 8: an estimate."""
    config = finetune.get_config()
    config.mesh.fsdp = 1
    config.micro_batches = 4
    return config
