"""Kosmos-1's language-only instruction tuning (spec section 4.7, last line)."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import kosmos1_pretrain


def get_config() -> ConfigDict:
    """As pretraining but for rate, length and data; begins with the pretrained model."""
    config = kosmos1_pretrain.get_config()
    config.init_from.update(path="runs/kosmos1_pretrain/model", allow_missing="")
    config.optimizer.update(learning_rate=2e-5, total_steps=10_000)
    # 1,072 samples an update: some 190 thousand tokens.
    config.data.update(mixture="kosmos1_instruct", batch_size=96)
    return config
