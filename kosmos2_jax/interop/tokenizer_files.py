"""Tokenizer files: found, written beside weights, turned into Hugging Face's form and back.

Hugging Face's tokenizer is XLM-RoBERTa's: the unigram pieces with fairseq's four tokens before
and `<mask>` after them; the processor adds the tags and the location tokens (spec section 3.2).
"""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.grounding.tags import BOS, EOS, FIRST_TAGS, MASK, PAD, UNK
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.interop.files import DICT_TXT, TOKENIZER_MODEL, read_json

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

TOKENIZER_JSON = "tokenizer.json"
_UNIGRAM = 1  # ModelProto.TrainerSpec.model_type
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # ModelProto.SentencePiece.type
_SPM_FIRST_PIECE = 3
_WORD_START = "▁"
_DEFAULT_IMAGE_TOKENS = 64  # of transformers' Kosmos2Processor


# Finding -------------------------------------------------------------------------------------


def find_vocabulary(
    place: Path, vocab_size: int, tokenizer: Path | None = None
) -> Kosmos2Vocabulary | None:
    """The vocabulary beside some weights, its grid size found from the number of tokens.

    Args:
      place: a folder with `sentencepiece.bpe.model` (and `dict.txt`) or `tokenizer.json`.
      vocab_size: rows of the token embedding.
      tokenizer: a folder or model file to use instead.

    Returns:
      The vocabulary, or None if `place` has no tokenizer files.

    Raises:
      CheckpointError: `tokenizer` is no tokenizer, or no grid gives `vocab_size` tokens.
    """
    model = _model_in(tokenizer or place)
    if model is None:
        if tokenizer is not None:
            raise CheckpointError(f"{tokenizer} holds neither {TOKENIZER_MODEL} nor tokenizer.json")
        return None
    dict_file = None
    if not isinstance(model, TokenizerJsonModel) and (model.parent / DICT_TXT).is_file():
        dict_file = model.parent / DICT_TXT
    grid_size = _grid_size(Kosmos2Vocabulary(model, 0), vocab_size)
    return Kosmos2Vocabulary(model, grid_size, dict_file)


def _model_in(place: Path) -> Path | TokenizerJsonModel | None:
    if place.is_file():
        return TokenizerJsonModel(place) if place.suffix == ".json" else place
    if (place / TOKENIZER_MODEL).is_file():
        return place / TOKENIZER_MODEL
    if (place / TOKENIZER_JSON).is_file():
        return TokenizerJsonModel(place / TOKENIZER_JSON)
    return None


def _grid_size(plain: Kosmos2Vocabulary, vocab_size: int) -> int:
    """Location cells a side so that the vocabulary has `vocab_size` tokens."""
    if vocab_size == plain.vocab_size:
        return 0
    # The smallest grid tells how many tags come with any.
    cells = vocab_size - (Kosmos2Vocabulary(plain.model_file, 1).vocab_size - 1)
    grid_size = math.isqrt(max(cells, 0))
    if not grid_size or grid_size**2 != cells:
        raise CheckpointError(
            f"{plain.model_file} does not fit the model: it gives {plain.vocab_size} tokens and "
            f"those of a square grid, the model has {vocab_size}"
        )
    return grid_size


class TokenizerJsonModel:
    """A sentencepiece model rebuilt from a `tokenizer.json`, to be read like a file.

    transformers 5 saves no sentencepiece model beside its `tokenizer.json`, but all of a unigram
    model is in there: pieces, scores and normalisation.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerJsonModel) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def read_bytes(self) -> bytes:
        """The serialised model.

        Raises:
          CheckpointError: the file is no tokenizer of Kosmos-2's kind.
        """
        values = read_json(self.path)
        model = values.get("model", {})
        tokens = [tuple(pair) for pair in model.get("vocab", [])]
        names = [token for token, _ in tokens] if model.get("type") == "Unigram" else []
        if tuple(names[: len(FIRST_TAGS)]) != FIRST_TAGS or names[-1] != MASK:
            raise CheckpointError(f"{self.path} is no unigram tokenizer with Kosmos-2's tokens")
        return _proto(tokens[len(FIRST_TAGS) : -1], _charsmap(values)).SerializeToString()


def _charsmap(tokenizer_json: dict[str, Any]) -> bytes:
    normalizer = tokenizer_json.get("normalizer") or {}
    for part in normalizer.get("normalizers", [normalizer]):
        if part.get("type") == "Precompiled":
            return base64.b64decode(part["precompiled_charsmap"])
    return b""


def _proto(pieces: list[tuple[str, float]], charsmap: bytes) -> ModelProto:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    special = [(UNK, 0.0, _UNKNOWN), (BOS, 0.0, _CONTROL), (EOS, 0.0, _CONTROL)]
    for piece, score, kind in special + [(*pair, _NORMAL) for pair in pieces]:
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = _UNIGRAM
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.normalizer_spec.name = "nmt_nfkc" if charsmap else "identity"
    proto.normalizer_spec.precompiled_charsmap = charsmap
    return proto


# Writing -------------------------------------------------------------------------------------


def write_sentencepiece(folder: Path, vocabulary: Kosmos2Vocabulary) -> None:
    """Writes `sentencepiece.bpe.model` and fairseq's `dict.txt`, which lists its pieces."""
    (folder / TOKENIZER_MODEL).write_bytes(vocabulary.model_bytes)
    (folder / DICT_TXT).write_text(dict_txt(vocabulary), encoding="utf-8")


def dict_txt(vocabulary: Kosmos2Vocabulary) -> str:
    """The content of `dict.txt`: a line "piece 1" for every normal piece in order."""
    pieces = vocabulary.tokens[len(FIRST_TAGS) : vocabulary.mask_id]
    return "".join(f"{piece} 1\n" for piece in pieces)


def write_hugging_face(folder: Path, vocabulary: Kosmos2Vocabulary, config: Kosmos2Config) -> None:
    """Writes all that transformers' `AutoTokenizer` needs.

    Raises:
      CheckpointError: a sentencepiece model that transformers would apply differently.
    """
    (folder / TOKENIZER_MODEL).write_bytes(vocabulary.model_bytes)
    text = json.dumps(tokenizer_json(vocabulary), ensure_ascii=False, indent=2)
    (folder / TOKENIZER_JSON).write_text(text, encoding="utf-8")
    settings = {
        "tokenizer_class": "XLMRobertaTokenizer",
        "processor_class": "Kosmos2Processor",
        "add_prefix_space": True,
        **{f"{name}_token": token for name, token in _NAMED_TOKENS.items()},
    }
    if config.resampler.num_latents != _DEFAULT_IMAGE_TOKENS:
        # The processor has no setting of its own for this but takes those of its tokenizer.
        settings["num_image_tokens"] = config.resampler.num_latents
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


_NAMED_TOKENS = {
    "bos": BOS, "cls": BOS, "eos": EOS, "sep": EOS, "unk": UNK, "pad": PAD, "mask": MASK,
}  # fmt: skip


def tokenizer_json(vocabulary: Kosmos2Vocabulary) -> dict[str, Any]:
    """The content of `tokenizer.json`: equal to what transformers itself saves.

    Raises:
      CheckpointError: a sentencepiece model that transformers would apply differently.
    """
    proto = _checked_proto(vocabulary)
    charsmap = proto.normalizer_spec.precompiled_charsmap
    pieces = [[piece.piece, piece.score] for piece in proto.pieces[_SPM_FIRST_PIECE:]]
    metaspace = {
        "type": "Metaspace",
        "replacement": _WORD_START,
        "prepend_scheme": "always",
        "split": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(charsmap).decode(),
        }
        if charsmap
        else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace],
        },
        "post_processor": _post_processor(),
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": vocabulary.unk_id,
            "vocab": [[token, 0.0] for token in FIRST_TAGS] + pieces + [[MASK, 0.0]],
            "byte_fallback": False,
        },
    }


def _checked_proto(vocabulary: Kosmos2Vocabulary) -> ModelProto:
    from sentencepiece import sentencepiece_model_pb2

    vocabulary.tokenizer  # noqa: B018  (checks the file)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(vocabulary.model_bytes)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    needs = {
        "a unigram model": trainer.model_type == _UNIGRAM,
        "no byte fallback": not trainer.byte_fallback,
        "only normal pieces": all(p.type == _NORMAL for p in proto.pieces[_SPM_FIRST_PIECE:]),
        "pieces within words": trainer.split_by_whitespace
        and not trainer.treat_whitespace_as_suffix,
        "sentencepiece's usual treatment of spaces": normalizer.add_dummy_prefix
        and normalizer.remove_extra_whitespaces
        and normalizer.escape_whitespaces,
    }
    unmet = [need for need, met in needs.items() if not met]
    if unmet:
        raise CheckpointError(
            f"{vocabulary.model_file} cannot become a Hugging Face tokenizer, which needs "
            + " and ".join(unmet)
        )
    return proto


def _added_tokens(vocabulary: Kosmos2Vocabulary) -> list[dict[str, Any]]:
    """The special tokens, then tags and locations, which swallow the space on their left."""
    special = {*range(len(FIRST_TAGS)), vocabulary.mask_id}
    return [
        {
            "id": token_id,
            "content": vocabulary.tokens[token_id],
            "single_word": False,
            "lstrip": token_id not in special,
            "rstrip": False,
            "normalized": False,
            "special": token_id in special,
        }
        for token_id in [*range(len(FIRST_TAGS)), *range(vocabulary.mask_id, vocabulary.vocab_size)]
    ]


def _post_processor() -> dict[str, Any]:
    def special(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    def sequence(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    first = [special(BOS), sequence("A"), special(EOS)]
    ids = {EOS: Kosmos2Vocabulary.eos_id, BOS: Kosmos2Vocabulary.bos_id}
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, special(EOS), sequence("B"), special(EOS)],
        "special_tokens": {
            token: {"id": token, "ids": [token_id], "tokens": [token]}
            for token, token_id in ids.items()
        },
    }
