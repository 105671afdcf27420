"""Kosmos-1's pretraining (spec section 4.6, below the table), over prepared sources."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import pretrain


def get_config() -> ConfigDict:
    """The paper's numbers."""
    config = pretrain.get_config("kosmos1")
    config.optimizer.total_steps = 300_000
    # All of CLIP but its last layer is frozen.
    config.optimizer.groups = {"vision": {"frozen": True}, "vision_last_layer": {}}
    # The paper has 1.2 million tokens an update, 592 rows that are filled to 98%. 512 rows are two
    # for each chip of the largest slice of v5e.
    config.data.update(mixture="kosmos1_pretrain", batch_size=512)
    config.init_from.update(path="clip-vit-large-patch14", allow_missing="(resampler|decoder)/.*")
    return config
