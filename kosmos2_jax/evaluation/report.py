"""Reports of a run: a Markdown page and a plot of the curves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from etils import epath

from kosmos2_jax.errors import Kosmos2Error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = dict[int, float]

_COLOURS = ("#1d78dc", "#e63946", "#2a9d50", "#fb7121", "#9d4edd", "#00a0bd", "#795548", "#d63384")


def write_report(
    path: str | os.PathLike[str],
    title: str,
    metrics: Mapping[str, object],
    images: Mapping[str, str],
    sections: Mapping[str, str] | None = None,
) -> None:
    """Writes a Markdown page: a table of metrics, then sections, then pictures.

    Args:
      path: of the file to write, UTF-8; on a disk or in a bucket.
      title: of the page.
      metrics: name to value; floats are shown with four significant digits.
      images: heading to the path of a picture, relative to the page.
      sections: heading to Markdown text.
    """
    blocks = [f"# {title}"]
    if metrics:
        rows = [f"| {_cell(name)} | {_cell(_number(value))} |" for name, value in metrics.items()]
        blocks.append("\n".join(["| metric | value |", "| --- | ---: |", *rows]))
    blocks += [f"## {heading}\n\n{body.strip()}" for heading, body in (sections or {}).items()]
    blocks += [f"## {heading}\n\n![{heading}](<{image}>)" for heading, image in images.items()]
    epath.Path(path).write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def comparison(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """A table in Markdown of figures before and after, and their change.

    Args:
      before: name to value; a figure that is missing is left blank.
      after: name to value, in the order of the rows.
    """
    rows = ["| metric | before | after | change |", "| --- | ---: | ---: | ---: |"]
    for name, value in after.items():
        old = before.get(name)
        rest = (
            f" | {value:.4g} | " if old is None else f"{old:.4g} | {value:.4g} | {value - old:+.4g}"
        )
        rows.append(f"| {_cell(name)} | {rest} |")
    return "\n".join(rows)


def plot_curves(
    metrics_jsonl: str | os.PathLike[str],
    path: str | os.PathLike[str],
    names: Sequence[str] | None = None,
) -> None:
    """Draws the losses and the accuracies of a run as a PNG.

    Losses are the scalars with "loss" in their name; accuracies the other ones named "eval/...".
    Curves with many points are drawn pale with their running mean on top. Of a step that is there
    twice (a run that was resumed) the last line counts; a last line cut short is left out.

    Args:
      metrics_jsonl: one JSON object a line: "step" and scalars such as "train/loss".
      path: of the PNG file.
      names: of the scalars to draw; all by default.

    Raises:
      Kosmos2Error: a line is no such object, there is nothing to plot, or matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Kosmos2Error("Plots need matplotlib: run `pip install matplotlib`.") from None
    curves = read_curves(metrics_jsonl)
    if names is not None:
        curves = {name: curve for name, curve in curves.items() if name in names}
    losses = {name: curve for name, curve in curves.items() if "loss" in name}
    accuracies = {
        name: curve
        for name, curve in curves.items()
        if name.startswith("eval/") and name not in losses
    }
    panels = [(t, c) for t, c in (("Loss", losses), ("Accuracy", accuracies)) if c]
    if not panels:
        name = os.fspath(metrics_jsonl)
        raise Kosmos2Error(f"There is no loss and no accuracy to plot in {name!r}.")
    figure = Figure(figsize=(6.4 * len(panels), 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, group) in zip(all_axes, panels, strict=True):
        _draw_panel(axes, title, group)
    figure.savefig(path, format="png")


def read_curves(metrics_jsonl: str | os.PathLike[str]) -> dict[str, Curve]:
    """Returns {scalar: {step: value}} of a metrics file, steps in order, without NaN and infinity.

    Raises:
      Kosmos2Error: the file is missing, or a line but the last is no JSON object with a step.
    """
    name = os.fspath(metrics_jsonl)
    try:
        lines = Path(metrics_jsonl).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise Kosmos2Error(f"There is no metrics file {name!r}.") from None
    curves: dict[str, Curve] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise Kosmos2Error(
                f"Line {number} of {name!r} is not a JSON object with a step: remove that line."
            ) from None
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(key, {})[step] = float(value)
    return {key: dict(sorted(curve.items())) for key, curve in curves.items()}


def _draw_panel(axes: Axes, title: str, curves: Mapping[str, Curve]) -> None:
    for number, (name, curve) in enumerate(sorted(curves.items())):
        colour = _COLOURS[number % len(_COLOURS)]
        steps, values = list(curve), list(curve.values())
        marker = "o"
        if len(steps) > 60:
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            values, marker = _running_mean(values), ""
        label = f"{name} ({values[-1]:.3g})"
        axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, ms=3.5, label=label)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("step")
    axes.grid(color="#e4e4e7", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    values = [value for curve in curves.values() for value in curve.values()]
    if title == "Accuracy" and min(values) >= 0 and max(values) <= 1:
        axes.set_ylim(0, 1.02)
    elif title == "Loss" and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=9)


def _running_mean(values: list[float]) -> list[float]:
    """Returns an exponential mean over about a fortieth of the curve, unbiased at its start."""
    keep = 1 - 1 / max(2.0, len(values) / 40)
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
