"""VQA accuracy, as the VQAv2 challenge scores it.

Both the prediction and the true answers go through the challenge server's normaliser (VQAv2
evaluation, https://visualqa.org/evaluation.html), including its oddities: that keeps figures
comparable with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kosmos2_jax.evaluation.means import Figure

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}

_ARTICLES = frozenset(("a", "an", "the"))

# Removed where a space is beside one of them in the answer, else replaced by a space.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'

# A full stop that no digit follows. The challenge's expression was also meant to ask what stands
# before it, but does not; and it removes at most 32, as its flags are passed as a count.
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32

_CONTRACTIONS_IN_FULL = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Returns every contraction with one apostrophe forgotten, and what was meant."""
    table = {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTIONS_IN_FULL.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    return table | {"somebody'd": "somebodyd"}  # the challenge's own slip


_CONTRACTIONS = _contractions()


def normalize_answer(answer: str) -> str:
    """Returns an answer as the VQAv2 challenge compares it.

    Lower case; commas and question marks removed; other punctuation removed or made a space;
    number words up to ten as digits; articles dropped; forgotten apostrophes put back.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = re.sub(r"[\n\t]", " ", text.strip()).strip()
    original = text
    for mark in _PUNCTUATION:
        beside_space = mark + " " in original or " " + mark in original
        text = text.replace(mark, "" if beside_space else " ")
    text = _FULL_STOP.sub("", text, count=_MOST_FULL_STOPS)
    numbered = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(_CONTRACTIONS.get(w, w) for w in numbered if w not in _ARTICLES)


def answer_score(answers: Sequence[str], prediction: str) -> float:
    """Returns how right a prediction is, 0..1.

    Args:
      answers: what people answered. With one answer (as in easy-vqa) the score is 1 for the same
        normalised answer, else 0. With several (ten in VQAv2) it is min(n / 3, 1), n of the
        others having said the same, averaged over leaving each one out in turn.
      prediction: what the model answered.

    Raises:
      ValueError: there are no, two or three answers: the rule could not give 1 then.
    """
    if not answers or 1 < len(answers) < 4:
        raise ValueError(f"VQA accuracy needs 1 answer or at least 4, not {len(answers)}.")
    predicted = normalize_answer(prediction)
    same = [normalize_answer(answer) == predicted for answer in answers]
    if len(same) == 1:
        return float(same[0])
    count = sum(same)
    return sum(min((count - one) / 3, 1.0) for one in same) / len(same)


def vqa_accuracy(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> Figure:
    """Returns the mean of `answer_score` over all questions, 0..1.

    Args:
      targets: the true answers to each question: one, or those of several people.
      predictions: the answer to each question.

    Raises:
      ValueError: there are no questions, not as many predictions as targets, or a question has a
        number of answers that `answer_score` refuses.
    """
    if len(targets) != len(predictions):
        raise ValueError(f"There are {len(targets)} targets but {len(predictions)} predictions.")
    if not targets:
        raise ValueError("There are no questions to score.")
    return Figure([answer_score(*pair) for pair in zip(targets, predictions, strict=True)])
