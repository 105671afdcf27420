"""A small Kosmos-2 that learns to ground phrases on two CPU cores within minutes."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.training.groups import ParameterGroup
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.run_config import (
    DataConfig,
    EvaluationConfig,
    RunConfig,
    WarmStartConfig,
)
from kosmos2_jax.training.settings import to_config_dict


def get_config() -> ConfigDict:
    """The run behind `make quickstart`."""
    return to_config_dict(
        RunConfig(
            model=Kosmos2Config(
                vision=VisionConfig(
                    image_size=64,
                    patch_size=8,
                    hidden_size=128,
                    num_layers=3,
                    num_heads=4,
                    mlp_dim=256,
                ),
                resampler=ResamplerConfig(num_latents=64, attention_dropout=0.0),
                decoder=DecoderConfig(
                    vocab_size=0,
                    hidden_size=128,
                    num_layers=3,
                    num_heads=4,
                    mlp_dim=256,
                    max_length=1024,  # of which eight demonstrations with pictures take two thirds
                    dropout=0.0,
                ),
                grid_size=8,
            ),
            optimizer=OptimizerConfig(
                learning_rate=8e-4,
                warmup_steps=100,
                total_steps=2000,
                # What the warm start has taught them must not be lost while the decoder learns.
                groups={
                    "vision": ParameterGroup(learning_rate_factor=0.1),
                    "resampler": ParameterGroup(learning_rate_factor=0.1),
                },
            ),
            data=DataConfig(
                batch_size=32, length=136, streams=1, shuffle_buffer=64, word_weight=0.1
            ),
            evaluation=EvaluationConfig(
                tasks=(
                    "quickstart_scenes_rec",
                    "quickstart_scenes_grounding",
                    "quickstart_easy_vqa",
                ),
                every=500,
            ),
            warm_start=WarmStartConfig(steps=3500),
            micro_batches=4,
            no_repeat_ngram_size=0,
        )
    )
