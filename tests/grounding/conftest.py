"""Vocabularies for the tests of this folder: the real one, small ones, and transformers'."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

SENTENCES = (
    "a small red star left of the blue square",
    "two green circles above a large yellow triangle.",
    "the purple pentagon, striped, is below one orange cross",
    "Question: what colour is the shape? Answer: blue",
    "An image of a dotted hexagon and three small circles.",
    "it is next to the big brown heart; no, yes!",
)


def train_sentencepiece(folder: Path, **options: object) -> Path:
    """Trains a sentencepiece model on `SENTENCES` and returns its file."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        minloglevel=2,
        **{"vocab_size": 110, "hard_vocab_limit": False, **options},
    )
    path = folder / "small.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def small_model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="session")
def small_vocabulary(small_model_file: Path) -> Callable[[int], Kosmos2Vocabulary]:
    """Makes a vocabulary of about a hundred pieces with any grid."""
    return functools.cache(lambda grid_size: Kosmos2Vocabulary(small_model_file, grid_size))


@functools.cache
def _real_vocabulary(folder: Path) -> Kosmos2Vocabulary:
    return Kosmos2Vocabulary(folder / "sentencepiece.bpe.model", dict_file=folder / "dict.txt")


@pytest.fixture
def vocabulary(assets: Path) -> Kosmos2Vocabulary:
    """The released vocabulary."""
    return _real_vocabulary(assets / "tokenizer")


@functools.cache
def _hugging_face_processor(folder: Path):  # noqa: ANN202 (transformers is imported late)
    from sentencepiece import sentencepiece_model_pb2
    from transformers import CLIPImageProcessorPil, Kosmos2Processor, XLMRobertaTokenizer

    model = sentencepiece_model_pb2.ModelProto.FromString(
        (folder / "sentencepiece.bpe.model").read_bytes()
    )
    first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [(piece.piece, piece.score) for piece in model.pieces[3:]]
    tokenizer = XLMRobertaTokenizer(
        vocab=[*first, *pieces, ("<mask>", 0.0)],
        _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap,
    )
    return Kosmos2Processor(CLIPImageProcessorPil(use_square_size=True), tokenizer)


@pytest.fixture
def hugging_face_processor(assets: Path):  # noqa: ANN201
    """transformers' processor over the released vocabulary."""
    return _hugging_face_processor(assets / "tokenizer")
