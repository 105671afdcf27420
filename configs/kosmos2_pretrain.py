"""Kosmos-2's grounded pretraining (spec section 4.6), over a folder of prepared sources."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.config import preset
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.settings import to_config_dict


def get_config() -> ConfigDict:
    """The paper's numbers; `data.folder` is laid out as `kosmos2_jax.tasks.mixtures` says.

    Fits slices of v5e:16x16 and v5p:4x4x4 as it is, v6e:4x4 with `micro_batches=2` and v5e:4x4 with
    `micro_batches=4`, as `kosmos2 compile` found.
    """
    return to_config_dict(
        RunConfig(
            # 65,037 tokens lie in the model as 65,536 rows, which every mesh divides. Layers keep
            # their inputs alone: 32,000 tokens and 380 pictures a chip leave no room.
            model=preset("kosmos2_xpos").replace(
                scan_layers=True,
                dtype="bfloat16",
                remat="full",
                decoder={"vocab_multiple": 512},
            ),
            # 60,000 updates, 375 of warm-up to 2e-4, then linearly to 0: the defaults.
            optimizer=OptimizerConfig(),
            data=DataConfig(
                tasks="mixtures",
                folder="data",
                mixture="kosmos2_pretrain",
                # The paper has 419 thousand tokens an update, 208 rows that are filled to 98%. 256
                # rows are one for each chip of the largest slice of v5e.
                batch_size=256,
                length=2048,
                images=24,
                pack=True,
            ),
            mesh={"data": 1, "fsdp": -1},
            loss_chunk=256,
        )
    )
