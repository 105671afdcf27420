"""Small data that the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.tasks import quickstart, scenes


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Kosmos2Vocabulary:
    """The quickstart's text model with an 8x8 grid."""
    model_file = tmp_path_factory.mktemp("text") / "sentencepiece.bpe.model"
    train_sentencepiece(quickstart.sentences(), model_file, 200)
    return Kosmos2Vocabulary(model_file, 8)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes: 320 for training, 48 for the test."""
    folder = tmp_path_factory.mktemp("data")
    scenes.write_scenes(folder, "train", 320, seed=0)
    scenes.write_scenes(folder, "test", 48, seed=0)
    return folder
