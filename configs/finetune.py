"""Fine-tuning of a model with all its parameters, on boxes of your own."""

from __future__ import annotations

from ml_collections import ConfigDict

from kosmos2_jax.configs import pretrain


def get_config() -> ConfigDict:
    """Instruction tuning's rate (spec 4.7).

    Set `init_from.path`, and `data.boxes`, or `data.folder` and `data.mixture`, to what you have.
    """
    config = pretrain.get_config("kosmos2")
    config.optimizer.update(learning_rate=1e-5, warmup_steps=100, total_steps=2000)
    config.data.update(
        folder="",  # in the work folder
        mixture="boxes",
        batch_size=32,
        image_mode="square",  # as in inference, which the model is tuned for
    )
    config.evaluation.update(
        tasks=("own_rec", "own_grounding"),
        every=100,
        at_start=True,
        max_new_tokens=32,
        best_metric="own_rec_accuracy",
        patience=5,
    )
    config.init_from.update(path="kosmos-2", architecture=True)
    config.export.folder = "hugging_face"
    return config
