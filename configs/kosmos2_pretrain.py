"""Kosmos-2's grounded pretraining (spec section 4.6), over a folder of prepared sources."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import pretrain


def get_config() -> ConfigDict:
    """The paper's numbers: 60,000 updates, 375 of warm-up to 2e-4, then linearly to 0.

    Fits slices of v5e:16x16 and v5p:4x4x4 as it is, v6e:4x4 with `micro_batches=2` and v5e:4x4 with
    `micro_batches=4`, as `kosmos2 compile` found.
    """
    config = pretrain.get_config("kosmos2_xpos")
    # The paper has 419 thousand tokens an update, 208 rows that are filled to 98%. 256 rows are one
    # for each chip of the largest slice of v5e.
    config.data.update(mixture="kosmos2_pretrain", batch_size=256)
    return config
