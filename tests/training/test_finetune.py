"""Fine-tuning on a COCO file, from boxes to an exported model, as tools/finetune_demo.py does it.

The model is a tiny one of random values; that fine-tuning helps is for the tool to show.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import seqio

from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.data.data_config import DataConfig, RehearsalConfig
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.interop.convert import load
from kosmos2_jax.interop.layout import flatten
from kosmos2_jax.interop.orbax_io import save_folder
from kosmos2_jax.interop.peft import add_adapter
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.tasks import quickstart
from kosmos2_jax.train import train
from kosmos2_jax.training.checkpoints import RunCheckpoints
from kosmos2_jax.training.run_config import (
    EvaluationConfig,
    ExportConfig,
    InitFromConfig,
    RunConfig,
)
from kosmos2_jax.training.run_data import like_checkpoint, prepare_data
from kosmos2_jax.training.take_along import check_export

from .. import programs

MODEL = Kosmos2Config(
    vision=VisionConfig(64, 16, 32, 1, 2, 32),
    resampler=ResamplerConfig(num_latents=16),
    decoder=DecoderConfig(0, 32, 1, 2, 32, 160),
    grid_size=8,
)
DATA = DataConfig(train_scenes=32, test_scenes=8, pieces=200)
# No figure of a random model rises: the run ends with its patience, after its first evaluation and
# four more, one an update.
UPDATES, LAST, BEST = 6, 5, 1


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The program."""
    return programs.tool("finetune_demo")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder as tools/quickstart.py leaves it: data, model and settings."""
    folder = tmp_path_factory.mktemp("quickstart")
    _, vocabulary = quickstart.prepare(folder / "data", DATA, MODEL, 0)
    config = MODEL.replace(decoder={"vocab_size": vocabulary.vocab_size})
    shapes = nn.meta.unbox(jax.eval_shape(lambda: initial_params(config, jax.random.key(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    generation = {"no_repeat_ngram_size": 0}
    save_folder(folder / "model", params, config, vocabulary, generation)
    settings = dataclasses.asdict(RunConfig(data=DATA))
    (folder / "run.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def asked(old: Path, tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    """What the program is asked for."""
    return argparse.Namespace(
        quickstart=str(old),
        workdir=str(tmp_path_factory.mktemp("demo")),
        how="lora",
        updates=UPDATES,
        pictures=24,
        unseen=4,
        evaluated=4,
    )


@pytest.fixture(scope="module")
def finished(tool: ModuleType, asked: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """The figures of a run, and its work folder."""
    return tool.demonstrate(asked), Path(asked.workdir) / asked.how


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_new_boxes_and_old_data_are_measured_before_and_after(finished):
    figures, folder = finished
    names = {"own_rec_accuracy", "rec_accuracy"}
    for when in ("before", "after"):
        assert {f"{when}/{name}" for name in names} <= figures.keys()
    table = (folder / "report.md").read_text()
    assert "| own_rec_accuracy | 0 | 0 | +0 |" in table
    assert f"The model after update {BEST} of {LAST}" in table
    for step in (0, BEST):
        sheet = f"sheets/{step:07d}/own_rec.png"
        assert (folder / sheet).exists()
        assert sheet in table
    last = [line for line in lines(folder) if "data/examples/grounded" in line][-1]
    old = sum(share for name, share in last.items() if name.startswith("data/examples/quickstart"))
    assert old == pytest.approx(0.7, abs=0.1)


def test_the_run_ends_with_its_patience_and_is_not_taken_up_again(finished, tool, asked, capfd):
    _, folder = finished
    assert max(line["step"] for line in lines(folder)) == LAST
    run = tool.make_run(
        asked, Path(asked.workdir) / "boxes" / "instances.json", Path(asked.quickstart)
    )
    again = train(run, folder)
    assert "update/s" not in capfd.readouterr().err
    assert max(line["step"] for line in lines(folder)) == LAST
    assert again.best_results["own_rec"].metrics == {"own_rec_accuracy": 0.0}


def test_the_export_answers_in_transformers_as_we_do(finished):
    figures, _ = finished
    assert figures["same_answers_in_transformers"] == 1.0


def test_the_adapter_is_the_best_model_without_its_base(finished, old):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    _, folder = finished
    base, best = load(old / "model"), load(folder / "best")
    merged = flatten(
        add_adapter(flatten(base.params), base.config, folder / "hugging_face_adapter")
    )
    for path, value in flatten(best.params).items():
        np.testing.assert_allclose(merged[path], value, rtol=1e-6, atol=1e-7)
    model = transformers.Kosmos2ForConditionalGeneration.from_pretrained(folder / "hugging_face")
    peft.PeftModel.from_pretrained(model, folder / "hugging_face_adapter")


@pytest.mark.parametrize("name", ["hugging_face", "hugging_face_adapter"])
def test_the_hub_reads_the_card(finished, name):
    hub = pytest.importorskip("huggingface_hub")
    figures, folder = finished
    card = hub.ModelCard.load(folder / name / "README.md")
    assert card.data.library_name == ("peft" if name.endswith("adapter") else "transformers")
    assert card.data.pipeline_tag == "image-text-to-text"
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["rec_accuracy"] == pytest.approx(figures["after/rec_accuracy"], abs=1e-4)
    kept = [
        json.loads((folder / "data/grit/own" / f"{split}.json").read_text())
        for split in ("train", "test")
    ]
    counts = [described["counts"]["own"]["kept"] for described in kept]
    assert sum(counts) == 24
    for split, count in zip(("train", "test"), counts, strict=True):
        assert f"| own | {split} | {count} |" in card.text
    assert "adapters (LoRA) of rank 16" in card.text
    assert "70% of the examples" in card.text
    assert all((folder / name / file).exists() for file in hub_pictures(card.text))


def hub_pictures(text: str) -> list[str]:
    return [line.partition("(<")[2].rstrip(">)") for line in text.splitlines() if "![" in line]


def test_a_checkpoint_gives_its_architecture_and_not_how_it_is_computed(old):
    asked = RunConfig(
        model=Kosmos2Config(
            dtype="bfloat16", remat="full", decoder=DecoderConfig(vocab_multiple=8)
        ),
        init_from=InitFromConfig(path=str(old / "model"), architecture=True),
    )
    run = like_checkpoint(asked)
    assert (run.model.vision, run.model.grid_size) == (MODEL.vision, 8)
    assert (run.model.dtype, run.model.remat) == ("bfloat16", "full")
    assert run.model.decoder.vocab_multiple == 8
    assert run.no_repeat_ngram_size == 0
    assert like_checkpoint(RunConfig()) == RunConfig()


def test_patience_counts_what_was_measured_since_the_best(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, 1)
    assert checkpoints.stale() == 0
    for step, figure, stale in ((1, 0.5, 0), (2, 0.6, 0), (3, 0.6, 1), (4, 0.1, 2), (5, 0.7, 0)):
        checkpoints.note(step, figure)
        assert checkpoints.stale() == stale
    checkpoints.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EvaluationConfig(patience=1), "patience.*best_metric"),
        (lambda: InitFromConfig(architecture=True), "architecture.*init_from.path"),
        (lambda: RehearsalConfig(share=0.3), "rehearsal.folder"),
        (lambda: RehearsalConfig(share=1.0, folder="a"), "rehearsal.share.*below 1"),
        (lambda: DataConfig(held_out=0.0), "held_out must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_an_export_that_cannot_be_made_is_refused_before_the_run(tmp_path):
    run = RunConfig(export=ExportConfig("hf"))
    with pytest.raises(ConfigError, match="work folder on a disk"):
        check_export(run, "gs://bucket/run")
    xpos = dataclasses.replace(run, model=MODEL.replace(decoder={"position": "xpos"}))
    with pytest.raises(ConfigError, match="no xpos positions"):
        check_export(xpos, tmp_path)


def test_old_data_with_another_tokenizer_are_refused(old, tool, asked, tmp_path):
    run = tool.make_run(asked, Path(asked.workdir) / "boxes" / "instances.json", old)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, pieces=60))
    with pytest.raises(ConfigError, match="another tokenizer than the new ones"):
        prepare_data(like_checkpoint(run), tmp_path)


def test_a_task_that_the_data_do_not_have_is_named(old, tmp_path):
    for name in ("own_rec", "own_grounding"):
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
    run = RunConfig(
        model=MODEL,
        data=dataclasses.replace(DATA, folder=str(old / "data"), length=96),
        evaluation=EvaluationConfig(tasks=("own_rec",)),
    )
    with pytest.raises(ConfigError, match="names 'own_rec'.*quickstart_scenes_rec"):
        train(run, tmp_path)
