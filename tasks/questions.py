"""seqio tasks over questions with free answers: VQAv2, VizWiz, WebSRC (spec 5.5 and 5.8)."""

from __future__ import annotations

import bisect
import collections
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

from kosmos2_jax.data.benchmark_tasks import add_benchmark_task
from kosmos2_jax.data.benchmarks.records import QuestionRecord
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.examples import Example, Picture, Text, question_example
from kosmos2_jax.evaluation import extraction, vqa
from kosmos2_jax.evaluation.means import Figure, means_by_group
from kosmos2_jax.grounding import tags
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

from .captioning import plain_text, task_name

SHOTS = (2, 4, 8)
# The misspelling is the paper's (spec section 5.8).
WEBSRC_PROMPT = (
    "Given the context below from web page, extract the answer from the given text like this: "
    "Qusestion: Who is the publisher of this book? Answer: Penguin Books Ltd. "
    "Context: {context} Q: {question} A:"
)
_ANSWER_TOKENS = 64  # what is left of the longest sequence for the answer
# Splits whose answers are known, and those whose answers a server keeps.
_SPLITS = {"vqav2": ("val2014",), "vizwiz": ("val",)}
_SECRET = {"vqav2": ("test-dev2015", "test2015"), "vizwiz": ("test",)}


def register(folder: Path, settings: TaskSettings) -> tuple[str, ...]:
    """Adds tasks for splits of each set below `folder`, few-shot ones too; gives their names."""
    accuracy = {"build": _build, "measure": vqa_accuracy}
    asked = [
        (benchmark, split, shots, accuracy)
        for benchmark, splits in _SPLITS.items()
        for split in splits
        for shots in (0, *SHOTS)
    ]
    secret = {"build": _build, "measure": _nothing}
    asked += [(name, split, 0, secret) for name, splits in _SECRET.items() for split in splits]
    build_websrc = functools.partial(_build_websrc, settings)
    asked.append(("websrc", "dev", 0, {"build": build_websrc, "measure": match}))
    for benchmark, split, shots, parts in asked:
        add_benchmark_task(
            task_name(benchmark, split, shots),
            benchmark,
            split,
            folder / benchmark,
            settings,
            read=plain_text,
            shots=shots,
            **parts,
        )
    return tuple(task_name(*parts[:3]) for parts in asked)


def _build(record: QuestionRecord, picture: bytes) -> Example:
    """`Question: {question} Answer:`, and what most people answered, unless that is secret."""
    answers = collections.Counter(record.answers).most_common(1) or [("", 0)]
    return question_example([picture], [(record.question, answers[0][0])])


def _nothing(targets: Sequence[QuestionRecord], predictions: Sequence[str]) -> dict[str, float]:
    """What can be told where answers are secret."""
    return {}


def _build_websrc(settings: TaskSettings, record: QuestionRecord, picture: bytes) -> Example:
    """Kosmos-1's prompt after the picture of the page.

    What became of pages longer than what the model reads is not published: here their end is left
    out.
    """
    vocabulary, encode = settings.vocabulary, settings.encode
    around = WEBSRC_PROMPT.format(context="", question=record.question)
    taken = len(vocabulary.encode(around)) + encode.num_latents + 3 + _ANSWER_TOKENS
    context = _first_words(vocabulary, record.context, encode.max_tokens - taken)
    prompt = WEBSRC_PROMPT.format(context=context, question=record.question)
    prompt = tags.require_no_tags(prompt, "The question")
    answer = tags.require_no_tags(record.answers[0], "The answer")
    return Example((Picture(picture), Text(prompt, False), Text(answer, True)))


def _first_words(vocabulary: Kosmos2Vocabulary, text: str, tokens: int) -> str:
    """The beginning of a text that has at most so many tokens."""
    words, ends = _words(vocabulary, text)
    return " ".join(words[: bisect.bisect_right(ends, tokens)])


@functools.lru_cache(maxsize=8)  # questions about a page follow one another
def _words(vocabulary: Kosmos2Vocabulary, text: str) -> tuple[list[str], list[int]]:
    """The words, and how many tokens there are up to the end of each."""
    words = text.split()
    return words, list(itertools.accumulate(len(vocabulary.encode(word)) for word in words))


def vqa_accuracy(targets: Sequence[QuestionRecord], predictions: Sequence[str]) -> dict[str, float]:
    """VQA accuracy, of all questions and by kind of answer."""
    scores = [
        vqa.answer_score(record.answers, answer)
        for record, answer in zip(targets, predictions, strict=True)
    ]
    groups = means_by_group(scores, [(record.group,) for record in targets])
    by_kind = {f"accuracy/{group}": mean for group, (mean, _) in groups.items()}
    return {"accuracy": Figure(scores)} | by_kind


def match(targets: Sequence[QuestionRecord], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of words."""
    pairs = list(zip(targets, predictions, strict=True))
    return {
        "exact_match": Figure([extraction.exact_match(r.answers, p) for r, p in pairs]),
        "f1": Figure([extraction.f1(r.answers, p) for r, p in pairs]),
    }
