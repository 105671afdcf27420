"""Evaluation of a finished model on the papers' benchmarks, as many as are in `benchmarks/`."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.training.run_config import EvaluationConfig, EvaluationRun
from kosmos2_jax.training.settings import to_config_dict


def get_config() -> ConfigDict:
    """Set `checkpoint`; `data.folder` and `evaluation.tasks` for yours."""
    return to_config_dict(
        EvaluationRun(
            # A matrix of eight and its six candidates; eight demonstrations and what is asked.
            data=DataConfig("benchmarks", folder="benchmarks", length=2048, images=14),
            evaluation=EvaluationConfig(max_new_tokens=64),
        )
    )
