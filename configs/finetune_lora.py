"""Fine-tuning of the released model by adapters (LoRA), on boxes of your own."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import finetune


def get_config() -> ConfigDict:
    """Adapters of every linear layer of the decoder; the rest stays as it is."""
    config = finetune.get_config()
    # Adapters begin at nothing, and bear a larger rate than the model itself.
    config.optimizer.update(learning_rate=2e-4, weight_decay=0.0)
    config.lora.update(rank=16, alpha=32.0, targets="decoder/.*", dropout=0.05)
    return config
