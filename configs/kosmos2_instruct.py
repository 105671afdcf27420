"""Kosmos-2's instruction tuning (spec section 4.7)."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import kosmos2_pretrain


def get_config() -> ConfigDict:
    """As pretraining but for rate, length and data; begins with the pretrained model."""
    config = kosmos2_pretrain.get_config()
    config.init_from.path = "runs/kosmos2_pretrain/model"
    config.optimizer.update(learning_rate=1e-5, total_steps=10_000)
    # 1,917 samples an update: some 330 thousand tokens.
    config.data.update(mixture="kosmos2_instruct", batch_size=160)
    return config
