"""A model is asked tasks of candidates; what it chooses is what scoring by hand gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from kosmos2_jax.config import preset
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.pictures import decode_picture
from kosmos2_jax.evaluation.predictions import read_predictions
from kosmos2_jax.inference.decoding import generate
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.prompt_batch import batch_prompts, build_prompt
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.inference.scoring import score_continuations
from kosmos2_jax.partitioning import batch_sharding, make_mesh
from kosmos2_jax.tasks import benchmarks
from kosmos2_jax.training.run_config import EvaluationConfig
from kosmos2_jax.training.sheets import sheet_items
from kosmos2_jax.training.task_evaluation import TaskEvaluation

from ..data import choice_files
from ..data.task_figures import png, write_files

TASKS = ("imagenet_constrained_val", "rendered_sst2_rationale_test", "copa_val")


@pytest.fixture(scope="module")
def asked(tmp_path_factory, assets) -> dict[str, Any]:
    """A random model, asked three examples of each task, and what it answered."""
    folder = tmp_path_factory.mktemp("choosing")
    files = choice_files.imagenet() | choice_files.rendered_sst2() | choice_files.copa()
    files["rendered_sst2/test/positive/0001.png"] = b"no picture"
    write_files(folder, files)
    tokenizer = str(assets / "tokenizer" / "sentencepiece.bpe.model")
    model = preset("tiny").replace(grid_size=32, vision={"num_layers": 1})
    vocabulary = benchmarks.prepare(folder, DataConfig(tokenizer=tokenizer), model, 0)[1]
    model = model.replace(decoder={"vocab_size": vocabulary.vocab_size, "num_layers": 1})
    sampling = SamplingConfig(max_new_tokens=3)
    contract = Kosmos2Model(model, sampling)
    params = contract.init(jax.random.key(0))
    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    with jax.set_mesh(mesh):
        evaluation = TaskEvaluation(
            contract,
            vocabulary,
            EvaluationConfig(tasks=TASKS, batch_size=2),
            feature_lengths(128, 1),
            batch_sharding(mesh),
        )
        results = evaluation(params, limit=3, folder=epath.Path(folder / "predictions"))
    return {"model": model, "params": params, "vocabulary": vocabulary, "results": results,
            "folder": folder / "predictions", "sampling": sampling}  # fmt: skip


def scores_of(asked: dict[str, Any], segments: list[Any], answers: list[list[int]]):
    prompt = build_prompt(asked["vocabulary"], 5, segments)
    return score_continuations(asked["model"], asked["params"], [prompt], [answers])[0]


def pixels(shade: int) -> np.ndarray:
    return decode_picture(png(shade), preset("tiny").vision.image_size)


def test_the_likeliest_name_is_written(asked):
    vocabulary, result = asked["vocabulary"], asked["results"]["imagenet_constrained_val"]
    names = ["tench", "goldfish", "crane", "crane", "stingray"]
    answers = [[*vocabulary.encode(name), vocabulary.eos_id] for name in names]
    expected = []
    for shade in range(3):
        scores = scores_of(asked, [pixels(shade), "The photo of the"], answers)
        expected.append(names[int(np.argmax([own.sum() for own in scores]))])
    assert result.outputs == result.predictions == expected
    accuracy = np.mean([name == own for name, own in zip(expected, names, strict=False)])
    assert result.metrics["imagenet_constrained_val_accuracy"] == pytest.approx(accuracy)


def test_the_rationale_stands_before_the_question(asked):
    name = "rendered_sst2_rationale_test"
    vocabulary, result = asked["vocabulary"], asked["results"][name]
    saved = read_predictions(Path(asked["folder"] / f"{name}.jsonl"), name)
    by_id = {prediction.id: prediction for prediction in saved}
    broken = "test/positive/0001.png"
    assert result.problems == {broken: "broken picture"}
    image = pixels(2)
    first = build_prompt(vocabulary, 5, [image, "Introduce this picture in detail:"])
    batch = batch_prompts([first], max_length=128)
    written = generate(asked["model"], asked["params"], batch, asked["sampling"])
    rationale = np.asarray(written.tokens)[0, : int(written.lengths[0])].tolist()
    rationale = [token for token in rationale if token != vocabulary.eos_id]
    question = vocabulary.encode("Question: what is the sentiment of the opinion? Answer:")
    prompt = build_prompt(vocabulary, 5, [image])
    ids = np.array([*prompt.ids, *rationale, *question], np.int32)
    slots = np.pad(prompt.image_slots, (0, len(ids) - len(prompt.ids)), constant_values=-1)
    answers = [vocabulary.encode(word) for word in ("positive", "negative")]
    prompt = prompt._replace(ids=ids, image_slots=slots)
    expected = score_continuations(asked["model"], asked["params"], [prompt], [answers])[0]
    found = by_id["test/positive/0002.png"].scores
    for ours, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)
    # All three are positive; the broken one counts as wrong.
    right = sum(chosen is not None and chosen.mean == 0 for chosen in result.predictions)
    assert result.metrics[f"{name}_accuracy"] == pytest.approx(right / 3) and right < 3
    assert sheet_items(result)


def test_language_needs_no_pictures(asked):
    vocabulary, result = asked["vocabulary"], asked["results"]["copa_val"]
    answers = [vocabulary.encode(text) for text in ("it rained.", "I slept.")]
    expected = [own.mean() for own in scores_of(asked, ["The grass was wet because"], answers)]
    assert [chosen.mean for chosen in result.predictions] == [int(np.argmax(expected))] * 3
    assert not sheet_items(result)
