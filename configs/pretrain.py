"""What pretraining and tuning at full size share; no run by itself."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.config import preset
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.training.settings import to_config_dict


def get_config(model: str = "kosmos2") -> ConfigDict:
    """The preset `model` on rows of the papers' length; mixture and batch are for others to say.

    `data.folder` is laid out as `kosmos2_jax.tasks.mixtures` says.
    """
    return to_config_dict(
        RunConfig(
            # 65,037 tokens lie in the model as 65,536 rows, which every mesh divides. Layers keep
            # their inputs alone: 32,000 tokens and 380 pictures a chip leave no room.
            model=preset(model).replace(
                scan_layers=True,
                dtype="bfloat16",
                remat="full",
                decoder={"vocab_multiple": 512},
            ),
            data=DataConfig(tasks="mixtures", folder="data", length=2048, images=24, pack=True),
            mesh={"data": 1, "fsdp": -1},
            loss_chunk=256,
        )
    )
