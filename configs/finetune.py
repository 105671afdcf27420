"""Fine-tuning of the released model with all its parameters, on sources of your own."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.config import preset
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.run_config import InitFromConfig, RunConfig
from kosmos2_jax.training.settings import to_config_dict


def get_config() -> ConfigDict:
    """Instruction tuning's rate (spec 4.7); set `data.rates` to what you have."""
    return to_config_dict(
        RunConfig(
            model=preset("kosmos2").replace(
                scan_layers=True,
                dtype="bfloat16",
                remat="full",
                decoder={"vocab_multiple": 512},
            ),
            optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=100, total_steps=2000),
            data=DataConfig(
                tasks="mixtures",
                folder="data",
                rates={"grounded": 1.0},
                batch_size=32,
                length=2048,
                images=24,
                pack=True,
                image_mode="square",  # as in inference, which the model is tuned for
            ),
            mesh={"data": 1, "fsdp": -1},
            init_from=InitFromConfig(path="kosmos-2"),
            loss_chunk=256,
        )
    )
