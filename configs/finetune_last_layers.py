"""Fine-tuning of the released model's last four decoder layers, on boxes of your own."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import finetune


def get_config() -> ConfigDict:
    """All else is frozen: it has no gradient and no moments."""
    config = finetune.get_config()
    config.optimizer.groups = {
        "vision": {"frozen": True},
        "resampler": {"frozen": True},
        "decoder": {"frozen": True},
        "last_layers": {"match": "decoder/layers_2[0-3]"},
    }
    return config
