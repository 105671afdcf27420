"""One HTML file that shows rows of batches and their statistics; no script, nothing from outside.

Everything that comes from data goes through `html.escape`.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from PIL import Image

from kosmos2_jax.evaluation.inspection import (
    LOCATION,
    WORD,
    InspectedExample,
    InspectedRow,
    Part,
    Picture,
    Slots,
    Token,
)
from kosmos2_jax.evaluation.inspection_statistics import (
    BatchStatistics,
    TaskFigures,
    histogram,
)
from kosmos2_jax.grounding.tags import DELIMITER, END_OF_CHUNK, END_OF_DOCUMENT, END_OF_LINE, EOS
from kosmos2_jax.vision.drawing import draw_grounded, span_colour

_STYLE = "inspection_page.css"
_BLANK = "▁"
_DRAWN_SIDE = 384  # pixels of a picture with boxes, about the width at which the page shows it
_LEVELS = 4  # of loss weights that the style tells apart, beside 0
_TASK_COLOURS = 8  # that the style has
_QUALITY = 85  # of WebP
# How the longest tag is shown.
_SHORT = {DELIMITER: "</delimiter…/>"}
# After these a line ends, as it did in the text.
_LINE_ENDS = (END_OF_LINE, END_OF_CHUNK, END_OF_DOCUMENT, EOS)
# Examples of more tokens have all the width.
_LONG = 250


@dataclasses.dataclass(frozen=True)
class SourceCounts:
    """What became of a source while the batches were read.

    Attributes:
      name: of the source.
      kept: examples that were kept.
      skipped: examples that were bad.
      reasons: counts by reason, also of what was mended or filtered.
    """

    name: str
    kept: int
    skipped: int
    reasons: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class InspectionPage:
    """All that the page shows.

    Attributes:
      title: the mixture's name.
      settings: name to value, of what decides about rows.
      rows: to be shown.
      statistics: of all rows that were read, at least one.
      rates: share of examples that each task should have, in any unit.
      sources: what was kept and skipped.
      grid_size: location cells a side; 0 where there are no boxes.
    """

    title: str
    settings: Mapping[str, str]
    rows: Sequence[InspectedRow]
    statistics: BatchStatistics
    rates: Mapping[str, float]
    sources: Sequence[SourceCounts]
    grid_size: int


def page_html(page: InspectionPage) -> str:
    """Returns the page as one HTML document."""
    style = resources.files(__package__).joinpath(_STYLE).read_text(encoding="utf-8")
    colours = {
        task: number % _TASK_COLOURS
        for number, task in enumerate(sorted({*page.rates, *page.statistics.tasks}))
    }
    rows = _Rows(_weights(page.rows), colours, page.grid_size)
    blocks = [
        _header(page),
        f"<section><h2>Statistics of {_number(len(page.statistics.filled), 'row')}</h2>",
        _tiles(page.statistics),
        _task_table(page.statistics, page.rates, colours),
        _histograms(page.statistics),
        _source_table(page.sources),
        "</section>",
        rows.key(),
        *(rows.row(number, row) for number, row in enumerate(page.rows, start=1)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}: what the model sees</title>\n<style>\n{style}</style></head>"
        "\n<body>\n" + "\n".join(blocks) + "\n</body></html>\n"
    )


# Statistics ----------------------------------------------------------------------------------


def _header(page: InspectionPage) -> str:
    settings = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in page.settings.items()
    )
    links = " ".join(f'<a href="#r{n}">{n}</a>' for n in range(1, len(page.rows) + 1))
    return (
        f"<header><h1>What the model sees <small>{escape(page.title)}</small></h1>"
        f'<dl class="settings">{settings}</dl><nav>Rows shown below: {links}</nav></header>'
    )


def _tiles(statistics: BatchStatistics) -> str:
    tasks = statistics.tasks.values()
    examples, tokens = len(statistics.lengths), sum(statistics.filled)
    places = statistics.row_length * len(statistics.filled)
    figures = [
        (f"{tokens / places:.1%}", "of places hold tokens", "fill: the rest is padding"),
        (f"{examples:,}", "examples", f"{examples / len(statistics.filled):.1f} a row"),
        (
            f"{sum(statistics.pictures):,}",
            "pictures",
            f"{sum(statistics.pictures) / len(statistics.filled):.1f} a row",
        ),
        (
            f"{sum(statistics.boxes):,}",
            "boxes",
            f"{sum(statistics.boxes) / examples:.1f} an example",
        ),
        (
            f"{sum(task.learnt for task in tasks) / tokens:.1%}",
            "of tokens are learnt",
            "the others are only read",
        ),
    ]
    tiles = "".join(
        f"<div><b>{escape(value)}</b> {escape(name)}<small>{escape(more)}</small></div>"
        for value, name, more in figures
    )
    return f'<div class="tiles">{tiles}</div>'


def _task_table(
    statistics: BatchStatistics, rates: Mapping[str, float], colours: Mapping[str, int]
) -> str:
    whole, examples = sum(rates.values()), len(statistics.lengths)
    tokens = sum(statistics.filled)
    rows = []
    for name, colour in colours.items():
        task = statistics.tasks.get(name, TaskFigures())
        cells = (
            f"{rates[name] / whole:.1%}" if name in rates else "",
            f"{task.examples / examples:.1%}",
            f"{task.tokens / tokens:.1%}",
            f"{task.examples:,}",
            *(
                f"{value / task.examples:,.1f}" if task.examples else ""
                for value in (task.tokens, task.learnt, task.pictures, task.boxes)
            ),
        )
        rows.append(
            f'<tr><th scope="row"><span class="dot c{colour}"></span>{escape(name)}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    heads = (
        "asked for", "examples", "tokens", "count", "tokens", "learnt", "pictures", "boxes",
    )  # fmt: skip
    return (
        "<h3>Tasks: the share they should have and the share they have</h3>"
        '<div class="wide"><table><thead><tr><td></td><th colspan="3" scope="colgroup">share</th>'
        '<th></th><th colspan="4" scope="colgroup">an example has on average</th></tr><tr>'
        "<th>task</th>"
        + "".join(f"<th>{head}</th>" for head in heads)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _histograms(statistics: BatchStatistics) -> str:
    fills = [100 * filled // statistics.row_length for filled in statistics.filled]
    charts = (
        ("Length of examples", "tokens, slots of pictures included", statistics.lengths, ""),
        ("Boxes per example", "", statistics.boxes, ""),
        ("Pictures per row", "", statistics.pictures, ""),
        ("Fill of rows", "places that hold tokens", fills, " %"),
    )
    return f'<div class="charts">{"".join(_chart(*chart) for chart in charts)}</div>'


def _chart(title: str, unit: str, values: Sequence[int], sign: str) -> str:
    bins = histogram(values)
    most = max(bar.count for bar in bins)
    rows = "".join(
        f'<tr><th scope="row">{bar.low:,}{f"–{bar.high:,}" if bar.high > bar.low else ""}{sign}'
        f"</th><td>{_bar(bar.count / most)}</td><td>{bar.count:,}</td></tr>"
        for bar in bins
    )
    return (
        f'<table class="chart"><caption>{escape(title)} <small>{escape(unit)}</small></caption>'
        f"{rows}</table>"
    )


def _bar(share: float) -> str:
    return f'<span class="bar" style="width:{share:.1%}"></span>' if share else ""


def _source_table(sources: Sequence[SourceCounts]) -> str:
    rows = []
    for source in sources:
        share = source.skipped / max(source.kept + source.skipped, 1)
        reasons = "<br>".join(
            f"{escape(reason)}: {count:,}" for reason, count in source.reasons.items()
        )
        rows.append(
            f'<tr><th scope="row">{escape(source.name)}</th><td>{source.kept:,}</td>'
            f"<td>{source.skipped:,} ({share:.1%})</td><td>{reasons or 'none'}</td></tr>"
        )
    return (
        "<h3>Sources: what was kept, skipped and mended</h3>"
        '<div class="wide"><table class="sources"><thead><tr><th>source</th><th>kept</th>'
        "<th>skipped</th>"
        "<th>skipped, clipped or filtered because</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


# Rows ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Writes rows.

    Attributes:
      weights: loss weights above 0 that occur, in order.
      colours: number of each task's colour.
      grid_size: location cells a side.
    """

    weights: Sequence[float]
    colours: Mapping[str, int]
    grid_size: int

    def key(self) -> str:
        """What the marks mean."""
        by_level: dict[int, list[float]] = {}
        for weight in self.weights:
            by_level.setdefault(self.level(weight), []).append(weight)
        learnt = "".join(
            f'<li><i class="w{level}">token</i> learnt, loss weight {_range(found)}</li>'
            for level, found in sorted(by_level.items())
        )
        size = f"{self.grid_size}×{self.grid_size}"
        grounding = (
            '<li><i class="loc w0">0044</i> location token: a cell of the grid of '
            f"{size}; two are the corners of a box, which is drawn where they put it</li>"
            '<li><span class="ground" style="--c:#1d78dc"><i class="tag w0">&lt;phrase&gt;</i>'
            '<i class="w0">words</i></span> a phrase, in the colour of its boxes</li>'
        )
        return (
            '<section class="key"><h2>How to read the rows</h2><ul>'
            '<li><i class="w0">token</i> only read</li>'
            f"{learnt}"
            '<li><i class="tag w0">&lt;tag&gt;</i> special token</li>'
            f"{grounding if self.grid_size else ''}"
            '<li><span class="slots">▣ picture 1</span> the places a picture takes</li>'
            "</ul><p>A row is what the model works through at once. Examples that share a row do "
            "not see each other, and positions begin again with each. Point at a token for its id, "
            "position and weight.</p></section>"
        )

    def row(self, number: int, row: InspectedRow) -> str:
        """A row: how it is packed, and its examples."""
        share = row.filled / row.length
        pictures = sum(len(example.pictures) for example in row.examples)
        about = ", ".join(
            [
                _number(len(row.examples), "example"),
                _number(pictures, "picture"),
                f"{row.filled:,} of {row.length:,} places filled ({share:.0%})",
            ]
        )
        strip = "".join(
            f'<a class="c{self.colours[example.task]}" href="#r{number}e{k}" '
            f'style="flex:{example.size} 1 0" title="{escape(_about(k, example))}">{k}</a>'
            for k, example in enumerate(row.examples, start=1)
        )
        if padding := row.length - row.filled:
            strip += f'<span class="pad" style="flex:{padding} 1 0" title="padding"></span>'
        examples = "".join(
            self.example(number, k, example) for k, example in enumerate(row.examples, start=1)
        )
        return (
            f'<section class="row" id="r{number}"><h2>Row {number} <small>{about}</small></h2>'
            f'<div class="strip">{strip}</div><div class="examples">{examples}</div></section>'
        )

    def example(self, row: int, number: int, example: InspectedExample) -> str:
        """An example: its pictures beside its tokens."""
        last = example.first_position + example.size - 1
        tokens = example.tokens()
        learnt = sum(token.weight > 0 for token in tokens)
        about = (
            f"positions {example.first_position:,}–{last:,} in places {example.start:,}–"
            f"{example.start + example.size - 1:,} of the row, {learnt:,} learnt"
        )
        pictures = "".join(self.picture(row, picture) for picture in example.pictures)
        notes = "".join(f"<li>{escape(note)}</li>" for note in example.notes)
        long = ' class="long"' if len(tokens) > _LONG else ""
        dot = f'<span class="dot c{self.colours[example.task]}"></span>'
        return (
            f'<article{long} id="r{row}e{number}">'
            f"<h3>{dot}{number}. {escape(example.task)} <small>{about}</small></h3>"
            + (f'<ul class="notes">{notes}</ul>' if notes else "")
            + '<div class="sides">'
            + (f'<div class="pictures">{pictures}</div>' if pictures else "")
            + f'<p class="tokens">{"".join(self.part(row, part) for part in example.parts)}</p>'
            "</div></article>"
        )

    def picture(self, row: int, picture: Picture) -> str:
        """A picture with its boxes."""
        image = Image.fromarray(picture.pixels)
        boxes = sum(len(span.boxes) for span in picture.grounded.spans)
        if boxes:
            image = image.resize((_DRAWN_SIDE, _DRAWN_SIDE), Image.Resampling.BICUBIC)
            image = draw_grounded(image, picture.grounded, caption=False, min_long_side=_DRAWN_SIDE)
        name = f"picture {picture.number + 1}"
        said = f", {_number(boxes, 'box', 'boxes')}" if boxes else ""
        return (
            f'<figure id="r{row}p{picture.number + 1}"><img src="{_data_uri(image)}" '
            f'width="{image.width}" height="{image.height}" alt="{name} of row {row}">'
            f"<figcaption>{name}{said}</figcaption></figure>"
        )

    def part(self, row: int, part: Part) -> str:
        """One token, the tokens of a phrase, or the slots of a picture."""
        if isinstance(part, Token):
            return self.token(part)
        if isinstance(part, Slots):
            name = f"picture {part.picture + 1}"
            return (
                f'<a class="slots w{self.level(part.weight)}" href="#r{row}p{part.picture + 1}" '
                f'title="positions {part.position}–{part.position + part.count - 1}">▣ {name} '
                f"<small>{part.count} slots</small></a>"
            )
        tokens = "".join(map(self.token, part.tokens))
        if part.span is None:
            return tokens
        colour = "#{:02x}{:02x}{:02x}".format(*span_colour(part.span))
        return f'<span class="ground" style="--c:{colour}">{tokens}</span>'

    def token(self, token: Token) -> str:
        """A token; a blank it begins with stands before its mark."""
        classes = f"w{self.level(token.weight)}"
        text = token.text
        about = f"id {token.token_id}, position {token.position}, weight {token.weight:g}"
        before = after = ""
        if token.kind == LOCATION:
            cell = int(text.strip("<>").rpartition("_")[2])
            y, x = divmod(cell, self.grid_size)
            about = f"{text}: column {x + 1}, line {y + 1} of the grid; {about}"
            classes, text = f"loc {classes}", f"{cell:04d}"
        elif token.kind == WORD:
            before = " " if text.startswith(_BLANK) else ""
            text = text.removeprefix(_BLANK).replace(_BLANK, "␣") or "␣"
        else:
            classes, about = f"tag {classes}", f"{text}: {about}"
            text = _SHORT.get(text, text)
            after = "<br>" if text in _LINE_ENDS else ""
        return f'{before}<i class="{classes}" title="{escape(about)}">{escape(text)}</i>{after}'

    def level(self, weight: float) -> int:
        """How strongly a weight is marked: 0 for none, then 1 to `_LEVELS`."""
        if not weight > 0:
            return 0
        return min(math.ceil(_LEVELS * weight / max(self.weights, default=weight)), _LEVELS)


def _weights(rows: Iterable[InspectedRow]) -> list[float]:
    tokens = (token for row in rows for example in row.examples for token in example.tokens())
    return sorted({token.weight for token in tokens if token.weight > 0})


def _about(number: int, example: InspectedExample) -> str:
    return f"{number}. {example.task}: {_number(example.size, 'place')}"


def _range(weights: Sequence[float]) -> str:
    low, high = f"{weights[0]:.3g}", f"{weights[-1]:.3g}"
    return low if low == high else f"{low} to {high}"


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _data_uri(image: Image.Image) -> str:
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
