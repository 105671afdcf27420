"""Models with every tensor randomised, in transformers' form and in ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from kosmos2_jax.config import Kosmos2Config, preset
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.interop import hf_config
from kosmos2_jax.interop.layout import nest
from kosmos2_jax.interop.names import HUGGING_FACE

os.environ["HF_HUB_OFFLINE"] = "1"

TEXT = (
    "a small red star left of the blue square\n"
    "two puppies sit in a field of grass, and a cat sleeps\n"
    "the green circle is above a large yellow triangle.\n"
    "question: what colour is the shape? answer: it is blue\n"
)


@pytest.fixture(scope="session")
def small_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Kosmos2Vocabulary:
    """A unigram model of some 50 pieces with an 8 x 8 grid."""
    folder = tmp_path_factory.mktemp("small_tokenizer")
    (folder / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "small"),
        vocab_size=60,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    return Kosmos2Vocabulary(folder / "small.model", grid_size=8)


@pytest.fixture(scope="session")
def tiny() -> Kosmos2Config:
    """The tiny preset with the grid that a folder without tokenizer is taken to have."""
    return preset("tiny").replace(grid_size=32)


@pytest.fixture(scope="session")
def small(small_vocabulary: Kosmos2Vocabulary) -> Kosmos2Config:
    """A config that fits `small_vocabulary`."""
    return preset("tiny").replace(grid_size=8, decoder={"vocab_size": small_vocabulary.vocab_size})


@pytest.fixture(scope="session")
def random_params() -> Callable[..., dict]:
    """Makes our parameter tree, every tensor random."""

    def make(config: Kosmos2Config, seed: int = 0) -> dict:
        rng = np.random.default_rng(seed)
        entries = HUGGING_FACE.entries(config)
        return nest({e.ours: rng.normal(size=e.shape).astype(np.float32) for e in entries})

    return make


@pytest.fixture(scope="session")
def hf_model() -> Callable[..., object]:
    """Makes transformers' model of one of our configs, every tensor random."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def make(config: Kosmos2Config, seed: int = 0) -> object:
        torch.manual_seed(seed)
        values = hf_config.config_json(config)
        model = transformers.Kosmos2ForConditionalGeneration(
            transformers.Kosmos2Config(
                text_config=values["text_config"],
                vision_config=values["vision_config"],
                latent_query_num=values["latent_query_num"],
            )
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        return model.eval()

    return make


@pytest.fixture(scope="session")
def hf_folder(
    tmp_path_factory: pytest.TempPathFactory, hf_model: Callable, tiny: Kosmos2Config
) -> Path:
    """A tiny model as transformers saves it, without tokenizer. Not to be written to."""
    folder = tmp_path_factory.mktemp("hf") / "model"
    hf_model(tiny).save_pretrained(folder)
    return folder
