"""Fine-tuning by adapters (LoRA) on one GPU of 24 GB."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import finetune_lora


def get_config() -> ConfigDict:
    """Parameters 6.7 GB, adapters with moments 0.2, four rows at a time some 3: an estimate."""
    config = finetune_lora.get_config()
    config.mesh.fsdp = 1
    config.micro_batches = 8
    return config
