"""Kosmos-1's pretraining (spec section 4.6, below the table), over prepared sources."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.config import preset
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.training.groups import ParameterGroup
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.run_config import InitFromConfig, RunConfig
from kosmos2_jax.training.settings import to_config_dict


def get_config() -> ConfigDict:
    """The paper's numbers; `data.folder` is laid out as `kosmos2_jax.tasks.mixtures` says."""
    return to_config_dict(
        RunConfig(
            model=preset("kosmos1").replace(
                scan_layers=True,
                dtype="bfloat16",
                remat="full",
                decoder={"vocab_multiple": 512},
            ),
            optimizer=OptimizerConfig(
                total_steps=300_000,
                # All of CLIP but its last layer is frozen.
                groups={
                    "vision": ParameterGroup(frozen=True),
                    "vision_last_layer": ParameterGroup(),
                },
            ),
            data=DataConfig(
                tasks="mixtures",
                folder="data",
                mixture="kosmos1_pretrain",
                # The paper has 1.2 million tokens an update, 592 rows that are filled to 98%. 512
                # rows are two for each chip of the largest slice of v5e.
                batch_size=512,
                length=2048,
                images=24,
                pack=True,
            ),
            mesh={"data": 1, "fsdp": -1},
            init_from=InitFromConfig(
                path="clip-vit-large-patch14", allow_missing="(resampler|decoder)/.*"
            ),
            loss_chunk=256,
        )
    )
