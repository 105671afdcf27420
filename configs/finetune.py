"""Fine-tuning of a model with all its parameters, on boxes of your own."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.config import preset
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.run_config import (
    EvaluationConfig,
    ExportConfig,
    InitFromConfig,
    RunConfig,
)
from kosmos2_jax.training.settings import to_config_dict


def get_config() -> ConfigDict:
    """Instruction tuning's rate (spec 4.7).

    Set `init_from.path`, and `data.boxes`, or `data.folder` and `data.mixture`, to what you have.
    """
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
                mixture="boxes",
                batch_size=32,
                length=2048,
                images=24,
                pack=True,
                image_mode="square",  # as in inference, which the model is tuned for
            ),
            evaluation=EvaluationConfig(
                tasks=("own_rec", "own_grounding"),
                every=100,
                at_start=True,
                max_new_tokens=32,
                best_metric="own_rec_accuracy",
                patience=5,
            ),
            mesh={"data": 1, "fsdp": -1},
            init_from=InitFromConfig(path="kosmos-2", architecture=True),
            export=ExportConfig(folder="hugging_face"),
            loss_chunk=256,
        )
    )
