"""A small sentencepiece model for runs that do not use the released one."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from kosmos2_jax.errors import ConfigError


def train_sentencepiece(sentences: Iterable[str], model_file: Path, vocab_size: int) -> None:
    """Trains a unigram model laid out as the released one (spec section 3.1).

    The same sentences give the same file, and one that is there already is not touched: other
    processes may be reading it. Every word of theirs becomes one piece if there is room.

    Args:
      sentences: text without tags.
      model_file: where to write; its folder is created.
      vocab_size: pieces at most, unk, bos and eos included; fewer where the text has no more.

    Raises:
      ConfigError: too few pieces for the characters of the text, or no text.
    """
    import sentencepiece

    lines = list(sentences)
    # A string becomes a candidate only if it occurs in two different words, and "red" and "red,"
    # are such; without them a small set of words would be cut into syllables.
    words = sorted({word.strip(".,:;?!") for line in lines for word in line.split()})
    lines += [word + mark for word in words for mark in ",."]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            # Chance and threads would change the file from run to run.
            num_threads=1,
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"Cannot train a sentencepiece model of {vocab_size} pieces: {error}"
        ) from None
    model_file.parent.mkdir(parents=True, exist_ok=True)
    if not model_file.exists() or model_file.read_bytes() != model.getvalue():
        model_file.write_bytes(model.getvalue())
