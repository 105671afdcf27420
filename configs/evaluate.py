"""Evaluation of a finished model, here the quickstart's on its own tasks."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.training.run_config import EvaluationConfig, EvaluationRun
from kosmos2_jax.training.settings import to_config_dict


def get_config() -> ConfigDict:
    """Set `checkpoint`, `data` and `evaluation.tasks` for yours."""
    return to_config_dict(
        EvaluationRun(
            checkpoint="runs/quickstart/model",
            data=DataConfig(folder="runs/quickstart/data", length=136),
            evaluation=EvaluationConfig(
                tasks=(
                    "quickstart_scenes_rec",
                    "quickstart_scenes_grounding",
                    "quickstart_easy_vqa",
                ),
            ),
        )
    )
