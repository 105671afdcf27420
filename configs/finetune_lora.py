"""Fine-tuning of the released model by adapters (LoRA), on sources of your own."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import finetune


def get_config() -> ConfigDict:
    """Adapters of the decoder's and the resampler's linear layers; the rest stays as it is."""
    config = finetune.get_config()
    # Adapters begin at nothing, and bear a larger rate than the model itself.
    config.optimizer.learning_rate = 1e-4
    config.lora.update(
        rank=16,
        alpha=32.0,
        targets="decoder/.*/(query|key|value|out|up|down)|resampler/.*",
    )
    return config
