"""A model and a picture on disk, which commands read."""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
import sentencepiece
from PIL import Image

from kosmos2_jax.config import preset
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.interop import orbax_io
from kosmos2_jax.models.kosmos2 import initial_params


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random values in our own format. Not to be written to."""
    folder = tmp_path_factory.mktemp("cli")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small red star left of the blue square", "An image of it."]),
        model_prefix=str(folder / "small"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    vocabulary = Kosmos2Vocabulary(folder / "small.model", grid_size=8)
    config = preset("tiny").replace(
        grid_size=8, decoder={"vocab_size": vocabulary.vocab_size, "num_layers": 1}
    )
    shapes = nn.meta.unbox(jax.eval_shape(lambda: initial_params(config, jax.random.key(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    orbax_io.save_folder(folder / "model", params, config, vocabulary)
    return folder / "model"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"
