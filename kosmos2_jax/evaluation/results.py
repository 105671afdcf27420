"""What an evaluation found, as its report shows it; and the report in Markdown."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from kosmos2_jax.evaluation.means import Interval
from kosmos2_jax.evaluation.paper_values import PaperValue

_SHOWN_IDS = 5
# What tells one example's reason from another's: quoted names, boxes, numbers.
_DETAIL = re.compile(r"'[^']*'|\([^)]*\)|\[[^]]*\]|\d+")

# What figures mean, by the beginning of their names.
MEANINGS = {
    "accuracy": "share of examples that are right",
    "accuracy_sum": "the same, candidates compared by the sum of their tokens' log-probabilities",
    "accuracy_any_name": "share of answers that are any of the class's names",
    "r1": "share of phrases whose first box overlaps a true box by half (IoU 0.5)",
    "r5": "share of phrases of whose first five boxes one does",
    "r10": "share of phrases of whose first ten boxes one does",
    "upper_bound": "share of phrases of whose boxes any does",
    "merged_": "the same with the one box around all true boxes of a phrase as the true one",
    "cider": "how much a caption shares with people's, rare words counting more",
    "bleu": "share of a caption's sequences of words that people used, too",
    "rouge_l": "the longest sequence of words in common with people's captions",
    "meteor": "words in common with people's captions, stems and synonyms included",
    "roc_auc": "how often a true example is ranked above a false one",
    "exact_match": "share of answers that are a true one word by word",
    "f1": "F1 of the words of the answer and of the true one",
}


def meanings(tasks: Sequence[TaskReport]) -> dict[str, str]:
    """Returns those of `MEANINGS` whose figures there are."""
    names = {row.name.partition("/")[0] for task in tasks for row in task.rows}
    return {
        key: text
        for key, text in MEANINGS.items()
        if key in names
        or (key in ("merged_", "bleu") and any(name.startswith(key) for name in names))
    }


ABOUT = (
    "Figures are in hundredths, CIDEr times 100, as in the papers. In brackets: where a figure "
    "would mostly lie, had other examples been drawn (95%, percentile bootstrap of 1,000 draws). "
    "What could not be asked or has no answer is counted as wrong."
)


@dataclasses.dataclass(frozen=True)
class FigureRow:
    """A figure.

    Attributes:
      name: as "r1", or "r1/people" for a group of examples.
      value: ours.
      interval: how sure it is; None where that is not known.
      paper: what is published; None where nothing is.
    """

    name: str
    value: float
    interval: Interval | None = None
    paper: PaperValue | None = None

    @property
    def difference(self) -> float | None:
        """How much higher ours is than the paper's."""
        return None if self.paper is None else self.value - self.paper.value

    @property
    def compared(self) -> str:
        """ "same" where the paper's value is within the interval, "above" or "below" it; or ""."""
        if self.paper is None or self.interval is None:
            return ""
        if self.interval.low <= self.paper.value <= self.interval.high:
            return "same"
        return "above" if self.value > self.paper.value else "below"


@dataclasses.dataclass(frozen=True)
class ShownExample:
    """An example.

    Attributes:
      id: of the example.
      prompt: exactly what stood before the answer, as markup.
      answer: what the model answered.
      truth: what is right.
      score: of the task's first figure; None where it has none of single examples.
      graded: whether the score says how good the answer is, as CIDEr, rather than how right.
      picture: with true and predicted boxes, if there are any; None for text alone.
      pictures: that the example has; the last one is shown.
    """

    id: str
    prompt: str
    answer: str
    truth: str
    score: float | None = None
    graded: bool = False
    picture: Image.Image | None = None
    pictures: int = 1


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """A task.

    Attributes:
      name: of the task.
      summary: what it is, in a line; empty where nobody said.
      examples: that were asked.
      lost: why examples could not be asked, by id.
      problems: why an answer could only be wrong, by id.
      rows: its figures, the most important first.
      best: examples of the highest score among the first ones.
      worst: examples of the lowest.
    """

    name: str
    summary: str
    examples: int
    lost: Mapping[str, str]
    problems: Mapping[str, str]
    rows: Sequence[FigureRow]
    best: Sequence[ShownExample] = ()
    worst: Sequence[ShownExample] = ()


@dataclasses.dataclass(frozen=True)
class Results:
    """An evaluation.

    Attributes:
      model: where it came from.
      settings: name to value.
      tasks: that were measured.
      not_measured: why other tasks were not, by name.
      note: what is to be known before figures are compared; empty where there is nothing.
    """

    model: str
    settings: Mapping[str, str]
    tasks: Sequence[TaskReport]
    not_measured: Mapping[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""


def number(value: float) -> str:
    """Returns a figure as it is shown."""
    return f"{value:.1f}"


def signed(value: float | None) -> str:
    """Returns a difference as it is shown; nothing for None."""
    return "" if value is None else f"{value:+.1f}"


def between(interval: Interval | None) -> str:
    """Returns an interval as it is shown; nothing for None."""
    return "" if interval is None else f"[{number(interval.low)}, {number(interval.high)}]"


def reasons(problems: Mapping[str, str]) -> list[str]:
    """Returns a line for each reason: how many examples, and the first of their ids.

    Reasons that differ in names and numbers alone are one.
    """
    by_kind: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for identity, reason in problems.items():
        by_kind[_DETAIL.sub("...", reason)][identity] = reason
    lines = []
    for kind, found in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        ids, said = list(found), set(found.values())
        more = ", ..." if len(ids) > _SHOWN_IDS else ""
        reason = said.pop() if len(said) == 1 else kind
        lines.append(f"{len(ids):,}: {reason} ({', '.join(ids[:_SHOWN_IDS])}{more})")
    return lines


def markdown(results: Results) -> str:
    """Returns the report as Markdown, without pictures."""
    blocks = [
        "# Evaluation",
        f"Model: `{results.model}`\n\n{ABOUT}",
        *([f"**{results.note}**"] if results.note else []),
        "\n".join(_table(_main_rows(results.tasks))),
    ]
    for task in results.tasks:
        blocks += [f"## {task.name}", *_task_blocks(task)]
    if results.not_measured:
        rows = [f"| {name} | {_cell(what)} |" for name, what in results.not_measured.items()]
        head = ["| task | why |", "| --- | --- |"]
        blocks += ["## Not measured", "\n".join([*head, *rows])]
    lines = [f"- {key}: {text}" for key, text in meanings(results.tasks).items()]
    blocks += ["## What the figures mean", "\n".join(lines)] if lines else []
    settings = [f"| {name} | {_cell(value)} |" for name, value in results.settings.items()]
    blocks += ["## Settings", "\n".join(["| setting | value |", "| --- | --- |", *settings])]
    return "\n\n".join(blocks) + "\n"


def _main_rows(tasks: Iterable[TaskReport]) -> list[tuple[str, FigureRow]]:
    return [(task.name, row) for task in tasks for row in task.rows if "/" not in row.name]


def _table(rows: Sequence[tuple[str, FigureRow]]) -> list[str]:
    lines = [
        "| task | figure | ours | 95% | paper | difference | source |",
        "| --- | --- | ---: | --- | ---: | ---: | --- |",
    ]
    for task, row in rows:
        paper = row.paper
        source = "" if paper is None else "; ".join(filter(None, (paper.source, paper.note)))
        cells = (
            task,
            row.name,
            number(row.value),
            between(row.interval),
            "" if paper is None else number(paper.value),
            signed(row.difference),
            source,
        )
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return lines


def _task_blocks(task: TaskReport) -> list[str]:
    counts = f"{task.examples:,} examples asked"
    blocks = [f"{task.summary}; {counts}." if task.summary else f"{counts}."]
    for title, problems in (("Not asked", task.lost), ("No answer", task.problems)):
        if problems:
            lines = "\n".join(f"- {line}" for line in reasons(problems))
            blocks.append(f"{title}, counted as wrong:\n\n{lines}")
    if groups := [(task.name, row) for row in task.rows if "/" in row.name]:
        blocks.append("\n".join(_table(groups)))
    if shown := [*task.best, *task.worst]:
        blocks.append(f"A prompt, exactly:\n\n    {_line(shown[0].prompt)}")
    for title, examples in (("Best", task.best), ("Worst", task.worst)):
        lines = [
            f"- {example.id}: `{_line(example.answer)}`; true: {_cell(example.truth)}"
            for example in examples
        ]
        if lines:
            blocks.append(f"{title} of the first examples:\n\n" + "\n".join(lines))
    return blocks


def _line(text: str) -> str:
    return text.replace("\n", "⏎").replace("`", "ˋ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
