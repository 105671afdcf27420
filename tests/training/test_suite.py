"""All kinds of tasks, on benchmarks that are drawn: one command, one report."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import jax
import pytest

import kosmos2_jax.evaluate
from kosmos2_jax.data.benchmark_registry import prepared_tasks
from kosmos2_jax.data.benchmarks import BENCHMARKS
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.drawn_benchmarks import MIN_EXAMPLES, draw
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.partitioning import make_mesh
from kosmos2_jax.training.run_config import EvaluationConfig, EvaluationRun

from ..docs_pages import MODEL, write_model

# Of tasks that differ in their files alone, which are all read below, one is asked.
TASKS = (
    "flickr30k_grounding_test",
    "refcoco_val",
    "flickr30k_captions_test_8shot",
    "vqav2_test_dev2015",
    "rendered_sst2_rationale_test",
    "hateful_memes_dev",
    "raven_test",
    "imagenet_constrained_val",
    "winograd_test_4shot",
    "copa_val_1shot",
)
# Splits that are not drawn.
NOT_DRAWN = {
    "flickr30k_grounding_val",
    *(f"{name}_{split}" for name in ("refcoco", "refcoco_plus") for split in ("testA", "testB")),
    "refcocog_test",
    "hateful_memes_dev_seen",
    "vqav2_test2015",
    "vizwiz_test",
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, MIN_EXAMPLES)
    return folder


def test_every_benchmark_is_drawn_in_its_own_files(drawn):
    for name, benchmark in BENCHMARKS.items():
        if name == "coco_val_captions":  # which no task asks
            continue
        for split in {benchmark.splits[0], benchmark.train} - {""}:
            assert benchmark.missing(drawn / name, split) == []
            reading = benchmark.read(drawn / name, split)
            assert reading.records
            # No picture of so few is missing.
            assert all("has no area" in problem.reason for problem in reading.problems)
    with pytest.raises(DataError, match="23 examples are too few"):
        draw(drawn / "few", MIN_EXAMPLES - 1)


def test_the_suite(drawn, tmp_path, monkeypatch):
    """A random model, two examples of each task."""
    monkeypatch.setenv("PATH", "")  # without Java, whose METEOR takes long to start
    one_device = functools.partial(make_mesh, devices=jax.devices()[:1])  # compiles faster
    monkeypatch.setattr(kosmos2_jax.evaluate, "make_mesh", one_device)
    sizes = {"decoder": {"max_length": 1024}, "resampler": {"num_latents": 4}}
    write_model(tmp_path / "model", MODEL.replace(**sizes))
    run = EvaluationRun(
        str(tmp_path / "model"),
        data=DataConfig("benchmarks", str(drawn), length=1024, images=14),
        evaluation=EvaluationConfig(TASKS, batch_size=2, max_new_tokens=2, examples=2),
    )
    results = kosmos2_jax.evaluate.evaluate(run, tmp_path / "work")
    assert {name: len(result.ids) for name, result in results.items()} == dict.fromkeys(TASKS, 2)
    ready, missing = prepared_tasks()
    assert set(missing) == NOT_DRAWN and len(ready) == 74
    pages = [(tmp_path / "work" / name).read_text() for name in ("report.md", "report.html")]
    assert set(re.findall(r"^## (\w+)$", pages[0], re.MULTILINE)) == {*TASKS, "Settings"}
    assert all("drawn by tools/draw_benchmarks.py, small and easy" in page for page in pages)
    for name in TASKS:
        assert f'<section id="{name}">' in pages[1]
    figures = json.loads((tmp_path / "work" / "metrics.json").read_text())
    assert {f"{name}_lost" for name in TASKS} <= set(figures)
