"""All caption scores of COCO's evaluation but SPICE, from plain captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kosmos2_jax.evaluation import coco_java, ptb_tokenizer
from kosmos2_jax.evaluation.bleu import bleu, bleu_counts
from kosmos2_jax.evaluation.cider import cider_d
from kosmos2_jax.evaluation.means import Figure
from kosmos2_jax.evaluation.ngrams import MAX_N, check_captions
from kosmos2_jax.evaluation.rouge import rouge_l


@dataclasses.dataclass(frozen=True)
class CaptionScores:
    """Scores of each caption; papers report means (of BLEU, the whole) times 100.

    Attributes:
      cider: CIDEr-D, 0..10.
      rouge_l: ROUGE-L, 0..1.
      bleu_counts: what BLEU is made of, int64 [pictures, 10].
      meteor: METEOR of all together and of each, 0..1, or None where it was not asked for.
      num_empty: captions without a word; they score 0.
    """

    cider: list[float]
    rouge_l: list[float]
    bleu_counts: np.ndarray
    meteor: tuple[float, list[float]] | None
    num_empty: int

    def figures(self) -> dict[str, float]:
        """Returns the figures by name: "cider", "bleu1" to "bleu4", "rouge_l", maybe "meteor".

        All but METEOR, which its program computes of all together, are `Figure`s.
        """
        figures: dict[str, float] = {"cider": Figure(self.cider)}
        for n in range(MAX_N):
            figures[f"bleu{n + 1}"] = Figure(self.bleu_counts, lambda rows, n=n: bleu(rows)[n])
        figures["rouge_l"] = Figure(self.rouge_l)
        if self.meteor is not None:
            figures["meteor"] = self.meteor[0]
        return figures


def score_captions(
    references: Sequence[Sequence[str]],
    predictions: Sequence[str],
    *,
    official: bool = False,
) -> CaptionScores:
    """Scores captions as COCO's evaluation does.

    Args:
      references: the true captions of each picture, at least one.
      predictions: the caption written for each picture.
      official: True to cut with COCO's own tokenizer and to compute METEOR, both of which need
        Java (`coco_java.is_available`); False for our tokenizer and no METEOR.

    Raises:
      JavaError: `official`, and Java or pycocoevalcap is missing.
      ValueError: there are no pictures, not as many predictions as references, or a picture has
        no reference.
    """
    check_captions(references, predictions)
    captions = [caption for group in references for caption in group] + list(predictions)
    if official:
        tokens = iter(coco_java.tokenize(captions))
    else:
        tokens = map(ptb_tokenizer.tokenize, captions)
    true = [[next(tokens) for _ in group] for group in references]
    written = list(tokens)
    return CaptionScores(
        cider=cider_d(true, written),
        rouge_l=rouge_l(true, written),
        bleu_counts=bleu_counts(true, written),
        meteor=coco_java.meteor(true, written) if official else None,
        num_empty=sum(not tokens for tokens in written),
    )
