"""Exact match and F1 of answers read off a text: WebSRC's scores, which are SQuAD's.

Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250; Chen et al. 2021 (WebSRC),
https://arxiv.org/abs/2101.09465.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_words(text: str) -> list[str]:
    """Returns the words that are compared: lower case, without ASCII punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(answers: Sequence[str], prediction: str) -> float:
    """Returns 1.0 if the prediction is one of the true answers after `normalize_words`, else 0.0.

    Raises:
      ValueError: there is no true answer.
    """
    _check_answers(answers)
    words = normalize_words(prediction)
    return float(any(normalize_words(answer) == words for answer in answers))


def f1(answers: Sequence[str], prediction: str) -> float:
    """Returns F1 of the words of the prediction and of the true answer nearest to it, 0..1.

    Where either has no words it is 1.0 if both have none, else 0.0.

    Raises:
      ValueError: there is no true answer.
    """
    _check_answers(answers)
    words = normalize_words(prediction)
    return max(_f1(normalize_words(answer), words) for answer in answers)


def _f1(answer: Sequence[str], prediction: Sequence[str]) -> float:
    if not answer or not prediction:
        return float(not answer and not prediction)
    shared = (collections.Counter(answer) & collections.Counter(prediction)).total()
    return 2 * shared / (len(answer) + len(prediction))


def _check_answers(answers: Sequence[str]) -> None:
    if not answers:
        raise ValueError("There is no true answer to compare with.")
