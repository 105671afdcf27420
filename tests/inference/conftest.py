"""A small vocabulary, random prompts, and a model that writes what it is told to."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from kosmos2_jax.config import Kosmos2Config, preset
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.predictor import Predictor
from kosmos2_jax.inference.prompt_batch import Prompt
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.models.positions import sinusoidal_embedding

SENTENCES = (
    "a small red star left of the blue square",
    "An image of two green circles above a large yellow triangle.",
    "Question: what colour is the shape? Answer: blue",
    "Describe this image in detail: It is next to the big brown heart; no, yes!",
)


@pytest.fixture(scope="session")
def small_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Kosmos2Vocabulary:
    """About a hundred pieces and an 8 x 8 grid."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=100,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path: Path = tmp_path_factory.mktemp("sentencepiece") / "sentencepiece.bpe.model"
    path.write_bytes(model.getvalue())
    return Kosmos2Vocabulary(path, grid_size=8)


@pytest.fixture(scope="session")
def small_config(small_vocabulary: Kosmos2Vocabulary) -> Kosmos2Config:
    """A tiny model for `small_vocabulary`, wide enough to tell many positions apart."""
    return preset("tiny").replace(
        grid_size=8,
        decoder={
            "vocab_size": small_vocabulary.vocab_size, "hidden_size": 64, "num_layers": 1,
        },
    )  # fmt: skip


@pytest.fixture(scope="session")
def random_prompt() -> Callable[..., Prompt]:
    """`(config, rng, parts)`: a number is so many random tokens of text, "image" a picture."""

    def make(config: Kosmos2Config, rng: np.random.Generator, parts: Sequence[int | str]) -> Prompt:
        ids, slots = [0], [-1]
        images: list[np.ndarray] = []
        latents, vocab = config.resampler.num_latents, config.decoder.vocab_size
        size = config.vision.image_size
        for part in parts:
            if part == "image":
                first = len(images) * latents
                ids += [vocab - 2, *range(4, 4 + latents), vocab - 1]
                slots += [-1, *range(first, first + latents), -1]
                images.append(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
            else:
                ids += rng.integers(4, vocab - 2, part).tolist()
                slots += [-1] * part
        return Prompt(np.array(ids, np.int32), np.array(slots, np.int32), tuple(images))

    return make


@pytest.fixture(scope="session")
def random_params() -> Callable[..., dict]:
    """`(config, seed=0)`: every tensor random, much sooner than by compiling `init`."""

    def make(config: Kosmos2Config, seed: int = 0) -> dict:
        rng = np.random.default_rng(seed)

        def values(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
            spread = 0.3 * rng.normal(size=leaf.shape)
            return (spread + ("scale" in str(path[-1]))).astype(np.float32)

        shapes = nn.meta.unbox(jax.eval_shape(lambda: initial_params(config, jax.random.key(0))))
        return jax.tree_util.tree_map_with_path(values, shapes)

    return make


@pytest.fixture(scope="session")
def scripted(
    small_config: Kosmos2Config,
    small_vocabulary: Kosmos2Vocabulary,
    random_params: Callable[..., dict],
) -> Callable[..., Predictor]:
    """`(prompt, answer)`: a predictor that follows up the markup `prompt` with `answer`.

    Nothing but the position counts: attention adds nothing, embeddings are tiny beside position
    vectors, and each unit of the feed-forward layer knows one position and adds the embedding of
    the token that is to be written there.
    """

    def make(prompt: str, answer: str, **generation: object) -> Predictor:
        vocabulary, config = small_vocabulary, small_config
        told = [*vocabulary.encode_markup(answer), vocabulary.eos_id]
        first = 1 + config.resampler.num_latents + 2 + len(vocabulary.encode_markup(prompt)) - 1
        decoder = config.decoder
        params = random_params(config)
        embedding = np.random.default_rng(0).normal(size=(decoder.vocab_size, decoder.hidden_size))
        embedding *= 1e-3 / np.linalg.norm(embedding, axis=1, keepdims=True)
        params["decoder"]["token_embedding"] = embedding.astype(np.float32)
        layer = params["decoder"]["layers_0"]
        for norm in (params["decoder"]["final_norm"], layer["mlp_norm"], layer["mlp"]["norm"]):
            norm["scale"][:], norm["bias"][:] = 1, 0
        params["decoder"]["final_norm"]["scale"][:] = 5e3
        layer["attention"]["out"] = jax.tree.map(np.zeros_like, layer["attention"]["out"])
        place = jnp.arange(first, first + decoder.mlp_dim)[None]
        known = np.array(sinusoidal_embedding(place, decoder.hidden_size))[0]
        known = (known - known.mean(1, keepdims=True)) / known.std(1, keepdims=True)
        likeness = known @ known.T / decoder.hidden_size
        threshold = (1 + likeness[~np.eye(len(known), dtype=bool)].max()) / 2
        layer["mlp"]["up"]["kernel"] = 100 * known.T
        layer["mlp"]["up"]["bias"][:] = -100 * threshold * decoder.hidden_size
        layer["mlp"]["down"]["bias"][:] = 0
        layer["mlp"]["down"]["kernel"][:] = 0
        layer["mlp"]["down"]["kernel"][: len(told)] = 1e6 * embedding[told]
        settings = {"max_new_tokens": 40, "no_repeat_ngram_size": 0, **generation}
        return Predictor(Kosmos2Model(config, SamplingConfig(**settings)), params, vocabulary)

    return make
