"""Report pages and curves."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.evaluation.report import plot_curves, read_curves, write_report


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_report_page(tmp_path):
    path = tmp_path / "report.md"
    write_report(
        path,
        "Schöner Lauf",
        {"rec_accuracy": 0.812345678, "steps": 4000, "a|b": "x\ny"},
        {"Curves": "curves.png", "Held-out pictures": "my sheet.png"},
        {"Settings": "\n`tiny`\n"},
    )
    assert path.read_text(encoding="utf-8") == (
        "# Schöner Lauf\n\n"
        "| metric | value |\n| --- | ---: |\n"
        "| rec_accuracy | 0.8123 |\n| steps | 4000 |\n| a\\|b | x y |\n\n"
        "## Settings\n\n`tiny`\n\n"
        "## Curves\n\n![Curves](<curves.png>)\n\n"
        "## Held-out pictures\n\n![Held-out pictures](<my sheet.png>)\n"
    )


def test_empty_report_is_its_title(tmp_path):
    write_report(tmp_path / "report.md", "Nothing", {}, {})
    assert (tmp_path / "report.md").read_text() == "# Nothing\n"


def test_curves_of_a_resumed_and_killed_run(tmp_path):
    path = write_lines(
        tmp_path / "metrics.jsonl",
        [
            {"step": 1, "train/loss": 5.0, "note": "text", "done": None},
            {"step": 3, "train/loss": 3.0, "eval/rec_accuracy": 0.5},
            {"step": 2, "train/loss": 4.0},
            {"step": 3, "train/loss": 2.5},
            {"step": 4, "train/loss": float("nan")},
        ],
    )
    with path.open("a") as stream:
        stream.write('\n{"step": 5, "train/lo')
    assert read_curves(path) == {
        "train/loss": {1: 5.0, 2: 4.0, 3: 2.5},
        "eval/rec_accuracy": {3: 0.5},
    }


def test_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    records = [{"step": n, "train/loss": 50.0 / (n + 1)} for n in range(100)]
    records += [{"step": n, "eval/rec_accuracy": n / 100, "eval/loss": 1.0} for n in (50, 99)]
    plot_curves(write_lines(tmp_path / "metrics.jsonl", records), tmp_path / "curves.png")
    plot_curves(tmp_path / "metrics.jsonl", tmp_path / "one.png", ["train/loss"])
    with Image.open(tmp_path / "curves.png") as both, Image.open(tmp_path / "one.png") as one:
        assert both.format == "PNG" and both.width == 2 * one.width > 600
        assert len(both.convert("RGB").getcolors(1 << 24)) > 20


def test_bad_metrics_files(tmp_path, monkeypatch):
    with pytest.raises(Kosmos2Error, match="There is no metrics file"):
        read_curves(tmp_path / "missing.jsonl")
    for content in ("no json\n", "[1, 2]\n", '{"loss": 1}\n'):
        path = tmp_path / "metrics.jsonl"
        path.write_text(content + '{"step": 1}\n')
        with pytest.raises(Kosmos2Error, match="Line 1 of .* is not a JSON object with a step"):
            read_curves(path)
    pytest.importorskip("matplotlib")
    empty = write_lines(tmp_path / "empty.jsonl", [{"step": 1, "train/lr": 0.1}])
    with pytest.raises(Kosmos2Error, match="no loss and no accuracy to plot"):
        plot_curves(empty, tmp_path / "curves.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Kosmos2Error, match="Plots need matplotlib"):
        plot_curves(empty, tmp_path / "curves.png")
