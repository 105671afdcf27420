"""The report of an evaluation as one HTML file; no script, nothing from outside.

Everything that comes from data goes through `html.escape`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

from PIL import Image

from kosmos2_jax.evaluation.results import (
    ABOUT,
    FigureRow,
    Results,
    ShownExample,
    TaskReport,
    between,
    meanings,
    number,
    reasons,
    signed,
)

_STYLE = "results_page.css"
_QUALITY = 85  # of WebP
_NAMES = {
    "accuracy": "accuracy",
    "accuracy_sum": "accuracy, by the sum of log-probabilities",
    "accuracy_any_name": "accuracy, any of its names",
    "roc_auc": "ROC-AUC",
    "exact_match": "exact match",
    "f1": "F1",
    "cider": "CIDEr-D",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "upper_bound": "any box hits",
    "merged_upper_bound": "any box hits, boxes merged",
    **{f"bleu{n}": f"BLEU-{n}" for n in range(1, 5)},
    **{f"r{k}": f"R@{k}" for k in (1, 5, 10)},
    "merged_": "boxes merged",
    "bleu": "BLEU-n",
    **{f"merged_r{k}": f"R@{k}, boxes merged" for k in (1, 5, 10)},
}


def page_html(results: Results) -> str:
    """Returns the page as one HTML document."""
    style = resources.files(__package__).joinpath(_STYLE).read_text(encoding="utf-8")
    blocks = [
        _header(results),
        _overview(results.tasks),
        *map(_task, results.tasks),
        _meanings(results.tasks),
        _not_measured(results.not_measured),
        _settings(results.settings),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation of {escape(results.model)}</title>\n<style>\n{style}</style></head>"
        "\n<body>\n" + "\n".join(blocks) + "\n</body></html>\n"
    )


def _header(results: Results) -> str:
    asked = sum(task.examples for task in results.tasks)
    note = f'<p class="note"><b>{escape(results.note)}</b></p>' if results.note else ""
    wrong = sum(len(task.lost) + len(task.problems) for task in results.tasks)
    return (
        f"<header><h1>How well the model does</h1><p><code>{escape(results.model)}</code></p>"
        f"<p>{len(results.tasks)} tasks, {asked:,} examples; {wrong:,} could not be asked or have "
        f"no answer. {escape(ABOUT)}</p>{note}</header>"
    )


def _overview(tasks: Sequence[TaskReport]) -> str:
    rows = []
    for task in tasks:
        main = [_cells(row) for row in task.rows if "/" not in row.name]
        main = main or [_NO_FIGURES]
        wrong = len(task.lost) + len(task.problems)
        lost = f" <small>{wrong:,} without an answer</small>" if wrong else ""
        first = (
            f'<th scope="rowgroup" rowspan="{len(main)}"><a href="#{escape(task.name)}">'
            f"{escape(task.name)}</a> <small>{task.examples:,} examples</small>{lost}</th>"
        )
        rows += [f"<tr>{first}{main[0]}</tr>", *(f"<tr>{cells}</tr>" for cells in main[1:])]
    return (
        "<section><h2>All figures</h2><p><small>The bar is ours on a scale of 0 to 100, the line "
        "on it the 95% interval, the red mark the paper's. A difference is grey where the "
        "paper's figure lies within the interval, green where ours is above, red where it is "
        "below.</small></p>"
        f'<div class="wide"><table class="figures"><thead><tr><th>task</th>{_HEADS}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


_NO_FIGURES = '<td colspan="7"><small>no figures: the true answers are secret</small></td>'
_HEADS = (
    "<th>figure</th><th>ours</th><th>95%</th><th></th><th>paper</th><th>difference</th>"
    "<th>the paper's figure</th>"
)


def _cells(row: FigureRow) -> str:
    figure, _, group = row.name.partition("/")
    name = escape(group or _NAMES.get(figure, figure))
    paper = source = ""
    if row.paper is not None:
        paper = number(row.paper.value)
        note = f" <em>({escape(row.paper.note)})</em>" if row.paper.note else ""
        source = f"<small>{escape(row.paper.source)}{note}</small>"
    return (
        f'<td>{name}</td><td class="n"><b>{number(row.value)}</b></td>'
        f'<td class="n">{between(row.interval)}</td><td>{_bar(row)}</td>'
        f'<td class="n">{paper}</td><td class="n {row.compared}">{signed(row.difference)}</td>'
        f"<td>{source}</td>"
    )


def _bar(row: FigureRow) -> str:
    """Ours as a bar of 0 to 100, the interval on it, the paper's as a mark."""

    def place(value: float) -> str:
        return f"{min(max(value, 0.0), 100.0):.1f}%"

    parts = [f'<i class="bar" style="width:{place(row.value)}"></i>']
    if row.interval is not None:
        low, high = place(row.interval.low), place(row.interval.high)
        parts.append(f'<i class="range" style="left:{low};right:calc(100% - {high})"></i>')
    if row.paper is not None:
        parts.append(f'<i class="mark" style="left:{place(row.paper.value)}"></i>')
    return f'<span class="scale">{"".join(parts)}</span>'


_BOXES = "Boxes, if any: solid pink is the model's, dashed green the true one."
_LAST = "Of several pictures the last is shown: what is asked about, or the last candidate."
_UNKNOWN = "&lt;unk&gt; stands for letters that the model's tokenizer does not know."


def _task(task: TaskReport) -> str:
    blocks = [f'<section id="{escape(task.name)}"><h2>{escape(task.name)}</h2>']
    blocks.append(f"<p>{escape(task.summary)}</p>" if task.summary else "")
    for title, problems in (
        ("{} could not be asked", task.lost),
        ("There is no answer to {}", task.problems),
    ):
        if problems:
            lines = "".join(f"<li>{escape(line)}</li>" for line in reasons(problems))
            blocks.append(
                f'<div class="lost"><b>{title.format(_number_of(problems))}; each counts as '
                f"wrong</b><ul>{lines}</ul></div>"
            )
    blocks += _groups(task.rows)
    if shown := [*task.best, *task.worst]:
        blocks.append(f"<h3>What the model reads, exactly</h3><pre>{escape(shown[0].prompt)}</pre>")
    graded = any(example.score is not None for example in shown)
    legend = _legend(shown)
    titles = ("Best of the first examples", "Worst of the first examples")
    for title, examples in zip(titles, (task.best, task.worst), strict=True):
        if examples:
            cards = "".join(map(_card, examples))
            heading = title if graded else "The first examples"
            blocks.append(f'<h3>{heading}</h3>{legend}<div class="cards">{cards}</div>')
    return "".join([*blocks, "</section>"])


def _number_of(problems: Mapping[str, str]) -> str:
    return "1 example" if len(problems) == 1 else f"{len(problems):,} examples"


def _legend(shown: Sequence[ShownExample]) -> str:
    """What has to be known to read the examples."""
    lines = [
        (_BOXES, any(example.picture is not None for example in shown)),
        (_LAST, any(example.pictures > 1 for example in shown)),
        (_UNKNOWN, any("<unk>" in example.prompt for example in shown)),
    ]
    told = " ".join(line for line, applies in lines if applies)
    return f"<p><small>{told}</small></p>" if told else ""


def _groups(rows: Sequence[FigureRow]) -> list[str]:
    """Figures of groups of examples, folded away, a table for each figure."""
    tables: dict[str, list[str]] = {}
    for row in rows:
        figure, _, group = row.name.partition("/")
        if group:
            tables.setdefault(figure, []).append(f"<tr>{_cells(row)}</tr>")
    return [
        f"<details><summary>{escape(_NAMES.get(figure, figure))} by group</summary>"
        f'<div class="wide"><table class="figures"><thead><tr>{_HEADS}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
        for figure, lines in tables.items()
    ]


def _card(example: ShownExample) -> str:
    picture = ""
    if example.picture is not None:
        picture = (
            f'<img src="{_data_uri(example.picture)}" width="{example.picture.width}" '
            f'height="{example.picture.height}" alt="picture of {escape(example.id)}">'
        )
    score = kind = ""
    if example.score is not None:
        kind = "partly"
        if not example.graded and not 0.0 < example.score < 1.0:
            kind = "right" if example.score >= 1.0 else "wrong"
        mark = {"right": "✓ right", "wrong": "✗ wrong"}.get(kind, f"score {example.score:.2f}")
        score = f'<b class="{kind}">{mark}</b> '
    return (
        f'<article class="{kind}">{picture}<p>{score}<small>{escape(example.id)}</small></p>'
        f"<dl><dt>asked</dt><dd><code>{escape(example.prompt)}</code></dd>"
        f"<dt>answered</dt><dd><code>{escape(example.answer) or '(nothing)'}</code></dd>"
        f"<dt>true</dt><dd>{escape(example.truth)}</dd></dl></article>"
    )


def _meanings(tasks: Sequence[TaskReport]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(_NAMES.get(name, name))}</th><td>{escape(text)}</td></tr>'
        for name, text in meanings(tasks).items()
    )
    head = "<section><h2>What the figures mean</h2>"
    return f"{head}<table><tbody>{rows}</tbody></table></section>" if rows else ""


def _not_measured(why: Mapping[str, str]) -> str:
    if not why:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(reason)}</td></tr>'
        for name, reason in why.items()
    )
    return (
        "<section><h2>Not measured, and why</h2>"
        f'<div class="wide"><table><tbody>{rows}</tbody></table></div></section>'
    )


def _settings(settings: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><code>{escape(value)}</code></td></tr>'
        for name, value in settings.items()
    )
    return f"<section><h2>Settings</h2><table><tbody>{rows}</tbody></table></section>"


def _data_uri(image: Image.Image) -> str:
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
