"""Evaluation on benchmarks' own files: the same whatever the devices, stopped or not."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from kosmos2_jax.config import preset
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.errors import ConfigError, PredictionError
from kosmos2_jax.evaluate import evaluate
from kosmos2_jax.evaluation.predictions import Prediction, read_predictions
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.interop.convert import load
from kosmos2_jax.interop.orbax_io import save_folder
from kosmos2_jax.partitioning import batch_sharding, make_mesh
from kosmos2_jax.training.run_config import EvaluationConfig, EvaluationRun
from kosmos2_jax.training.saved_predictions import saved_predictions
from kosmos2_jax.training.task_evaluation import TaskEvaluation

pytestmark = pytest.mark.usefixtures("quick_compilation")

TASKS = ("refcoco_val", "flickr30k_captions_test")
COUNT, BROKEN = 18, 11


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 48)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module", autouse=True)
def no_java():
    """METEOR takes long to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        yield


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two benchmarks of 18 pictures, one of which is broken, in their own files."""
    folder = tmp_path_factory.mktemp("downloads")
    names = [f"COCO_train2014_{number:012d}.jpg" for number in range(COUNT)]
    images = [
        {"id": n, "file_name": name, "width": 64, "height": 48, "caption": f"thing {n}"}
        for n, name in enumerate(names)
    ]
    boxes = [{"id": 100 + n, "image_id": n, "bbox": [0, 0, 32, 24]} for n in range(COUNT)]
    sentences = [[{"raw": f"A thing, number {n}."}, {"raw": "It."}] for n in range(COUNT)]
    karpathy = [
        {"imgid": n, "split": "test", "filename": name, "sentences": sentences[n]}
        for n, name in enumerate(names)
    ]
    for place in ("refcoco/train2014", "flickr30k_captions/flickr30k-images"):
        (folder / place).mkdir(parents=True)
        for number, name in enumerate(names):
            content = b"no picture" if number == BROKEN else picture(number)
            (folder / place / name).write_bytes(content)
    asked = [{"question_id": 7, "image_id": 1, "question": "What is it?"}]
    asked += [{"question_id": 8, "image_id": 2, "question": "What is lost?"}]
    secret = folder / "vqav2/test2015/COCO_test2015_000000000001.jpg"
    secret.parent.mkdir(parents=True)
    secret.write_bytes(picture(1))
    files = {
        "vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json": {"questions": asked},
        "refcoco/mdetr_annotations/finetune_refcoco_val.json": {
            "images": images,
            "annotations": boxes,
        },
        "flickr30k_captions/dataset_flickr30k.json": {"images": karpathy},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def run(downloads: Path, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationRun:
    """A random model's."""
    tokenizer = str(assets / "tokenizer" / "sentencepiece.bpe.model")
    vocabulary = Kosmos2Vocabulary(tokenizer, 32)
    size = {"vocab_size": vocabulary.vocab_size}
    config = preset("tiny").replace(grid_size=32, decoder=size)
    folder = tmp_path_factory.mktemp("model") / "random"
    params = Kosmos2Model(config).init(jax.random.key(0))
    save_folder(folder, params, config, vocabulary)
    return EvaluationRun(
        str(folder),
        data=DataConfig("benchmarks", str(downloads), tokenizer=tokenizer),
        evaluation=EvaluationConfig(TASKS, batch_size=4, max_new_tokens=6),
    )


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory) -> Path:
    """The work folder of an evaluation that nothing stopped, on eight devices."""
    folder = tmp_path_factory.mktemp("straight")
    evaluate(run, folder)
    return folder


def saved(folder: Path) -> dict[str, str]:
    return {task: saved_of(folder, task) for task in TASKS}


def saved_of(folder: Path, task: str) -> str:
    return (folder / "predictions" / f"{task}.jsonl").read_text()


class Killed(BaseException):
    """Stands for a signal that no handler sees."""


def test_a_stopped_evaluation_goes_on_and_asks_nothing_twice(run, straight, tmp_path, monkeypatch):
    generate, asked = Kosmos2Model.generate, []

    def killed(self, *arguments):
        asked.append(1)
        if len(asked) == 5:
            raise Killed
        return generate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Kosmos2Model, "generate", killed)
        with pytest.raises(Killed):
            evaluate(run, tmp_path)
        # 18 examples are three batches of eight rows; the first task and one batch more are done.
        assert len(read_predictions(tmp_path / "predictions" / f"{TASKS[1]}.jsonl", TASKS[1])) == 8
        with (tmp_path / "predictions" / f"{TASKS[1]}.jsonl").open("a") as torn:
            torn.write('{"task": "flickr30k_capt')
        evaluate(run, tmp_path)
    assert len(asked) == 5 + 2
    assert saved(tmp_path) == saved(straight)
    figures = json.loads((straight / "metrics.json").read_text())
    assert json.loads((tmp_path / "metrics.json").read_text()) == figures
    evaluate(run, tmp_path)  # nothing is left to ask
    assert saved(tmp_path) == saved(straight)


def test_one_device_says_what_eight_do(run, straight, tmp_path):
    model = load(run.checkpoint)
    sampling = SamplingConfig(max_new_tokens=6, no_repeat_ngram_size=3)
    rows = batch_sharding(make_mesh({}, jax.devices()[:1]))
    evaluation = TaskEvaluation(
        Kosmos2Model(model.config, sampling),
        model.vocabulary,
        run.evaluation,
        feature_lengths(run.data.length, run.data.images),
        rows,
    )
    folder = tmp_path / "predictions"
    results = evaluation(jax.device_put(model.params, jax.devices()[0]), folder=folder)
    assert saved(tmp_path) == saved(straight)
    found = {name: value for r in results.values() for name, value in r.metrics.items()}
    assert found == json.loads((straight / "metrics.json").read_text())
    for result in results.values():
        assert result.problems[result.ids[BROKEN]] == "broken picture"
        assert result.outputs[BROKEN] == ""


def test_other_models_and_settings_are_refused(run, straight, tmp_path):
    longer = dataclasses.replace(run.evaluation, max_new_tokens=7)
    with pytest.raises(ConfigError, match=r"other settings \(evaluation.max_new_tokens\)"):
        evaluate(dataclasses.replace(run, evaluation=longer), straight)
    model = load(run.checkpoint)
    params = jax.tree.map(np.copy, model.params)
    params["decoder"]["final_norm"]["scale"][0] += 1e-3
    save_folder(tmp_path / "other", params, model.config, model.vocabulary)
    with pytest.raises(ConfigError, match=r"other settings \(parameters\)"):
        evaluate(dataclasses.replace(run, checkpoint=str(tmp_path / "other")), straight)
    file = straight / "predictions" / f"{TASKS[0]}.jsonl"
    content = file.read_text()
    file.write_text(content.replace(TASKS[0], "refcoco_testA"))
    with pytest.raises(PredictionError, match="of 'refcoco_testA', not of 'refcoco_val'"):
        evaluate(run, straight)
    file.write_text(content)


def test_answers_to_other_questions_are_not_gone_on_from(run, straight, downloads, tmp_path):
    """The annotations or pictures were exchanged; other truth alone is measured anew."""
    task, config = TASKS[0], dataclasses.replace(run.evaluation, tasks=TASKS[:1])
    run, work = dataclasses.replace(run, evaluation=config), tmp_path / "work"
    shutil.copytree(straight, work)
    file = downloads / "refcoco/mdetr_annotations/finetune_refcoco_val.json"
    asked = downloads / "refcoco/train2014/COCO_train2014_000000000003.jpg"
    for path, new in (
        (file, file.read_bytes().replace(b'"thing 5"', b'"thing V"')),
        (asked, picture(99)),
    ):
        old = path.read_bytes()
        path.write_bytes(new)
        identity = "105" if path == file else "103"
        told = rf"of {task} have 1 ids \({identity}\) whose questions have changed"
        with pytest.raises(PredictionError, match=told):
            evaluate(run, work)
        path.write_bytes(old)
    old = file.read_bytes()
    file.write_bytes(old.replace(b"[0, 0, 32, 24]", b"[32, 0, 32, 24]"))
    assert evaluate(run, work)[task].targets[0].box == (32, 0, 64, 24)
    file.write_bytes(old)
    assert (work / "predictions" / f"{task}.jsonl").read_text() == saved_of(straight, task)


def test_predictions_in_a_bucket_are_gone_on_from(bucket):
    folder, given = bucket / "predictions", [Prediction("1", "a"), Prediction("2", "b")]
    for prediction in given:
        with saved_predictions(folder, "told") as predictions:
            predictions.add([prediction])
    assert (folder / "told.jsonl").read_text().splitlines() == [p.to_line("told") for p in given]
    with saved_predictions(folder, "told") as predictions:
        assert list(predictions.found.values()) == given


def test_saved_predictions_are_scored_without_asking_the_model(run, straight, tmp_path):
    saved = tmp_path / "saved"
    shutil.copytree(straight / "predictions", saved)
    again = dataclasses.replace(run, predictions=str(saved))
    results = evaluate(again, tmp_path / "again")
    figures = (straight / "metrics.json").read_text()
    assert (tmp_path / "again" / "metrics.json").read_text() == figures
    assert not (tmp_path / "again" / "predictions").exists()
    # Answers that are right, those that are missing, and one that is empty.
    lines = [Prediction(str(100 + n), "<object><patch_index_0000><patch_index_0495></object>")
             for n in range(5)] + [Prediction("105", "")]  # fmt: skip
    text = "".join(f"{line.to_line(TASKS[0])}\n" for line in lines)
    (saved / f"{TASKS[0]}.jsonl").write_text(text)
    results = evaluate(again, tmp_path / "other")
    result = results[TASKS[0]]
    assert result.metrics[f"{TASKS[0]}_accuracy"] == pytest.approx(5 / COUNT)
    assert collections.Counter(result.problems.values()) == {"missing": COUNT - 6, "empty": 1}
    page = (tmp_path / "other" / "report.html").read_text()
    assert "12: missing (106, 107, 108, 109, 110, ...)" in page and "data:image/webp" in page
    assert f"[{100 * result.metrics['refcoco_val_accuracy'].interval().low:.1f}, " in page
    assert "Peng et al. 2023" in page
    (saved / f"{TASKS[0]}.jsonl").write_text(2 * text)
    with pytest.raises(PredictionError, match="have 6 ids .* twice"):
        evaluate(again, tmp_path / "twice")


def test_the_suite_is_what_is_there_and_answers_go_to_the_server(run, tmp_path):
    """Answers of VQAv2's test are secret; one of its pictures is missing."""
    saved = tmp_path / "saved"
    saved.mkdir()
    secret = "vqav2_test_dev2015"
    line = Prediction("7", " a <phrase>red</phrase> hat").to_line(secret)
    (saved / f"{secret}.jsonl").write_text(line)
    suite = dataclasses.replace(run.evaluation, tasks=())
    evaluate(dataclasses.replace(run, evaluation=suite, predictions=str(saved)), tmp_path)
    sent = json.loads((tmp_path / "submissions" / f"{secret}.json").read_text())
    assert sent == [
        {"question_id": 7, "answer": "a red hat"},
        {"question_id": 8, "answer": ""},
    ]
    report = (tmp_path / "report.md").read_text()
    assert "- 1: picture 'COCO_test2015_000000000002.jpg' is missing (8)" in report
    assert "| refcoco_testA |" in report and "finetune_refcoco_testA.json, from" in report
    assert "| vqav2_val2014_4shot |" in report and "train2014" in report
    empty = dataclasses.replace(run.data, folder=str(tmp_path))
    with pytest.raises(ConfigError, match="nothing to measure"):
        evaluate(dataclasses.replace(run, evaluation=suite, data=empty), tmp_path / "nothing")


def test_a_suite_outlives_a_benchmark_that_cannot_be_asked(
    run, straight, tmp_path, downloads, capsys
):
    """A question is too long for a row; captions are scored as ever, and asked no more."""
    folder = tmp_path / "downloads"
    shutil.copytree(downloads / "flickr30k_captions", folder / "flickr30k_captions")
    shutil.copytree(downloads / "vqav2", folder / "vqav2")
    questions = folder / "vqav2" / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    asked = [{"question_id": 7, "image_id": 1, "question": "What is it, " + 40 * "really, " + "?"}]
    questions.write_text(json.dumps({"questions": asked}))
    data = dataclasses.replace(run.data, folder=str(folder), length=64)
    secret, captions = "vqav2_test_dev2015", TASKS[1]
    named = dataclasses.replace(run.evaluation, tasks=(secret, captions))
    with pytest.raises(DataError, match=f"'7' of {secret} has .* set data.length to"):
        evaluate(dataclasses.replace(run, data=data, evaluation=named), tmp_path / "named")
    assert not (tmp_path / "named" / "report.md").exists()

    suite = dataclasses.replace(run, data=data, evaluation=dataclasses.replace(named, tasks=()))
    work = tmp_path / "suite"
    (work / "predictions").mkdir(parents=True)
    shutil.copy(straight / "predictions" / f"{captions}.jsonl", work / "predictions")
    capsys.readouterr()
    with pytest.raises(DataError, match=rf"of \d+ tasks could not be measured .*{secret}"):
        evaluate(suite, work)
    assert f"{secret} is not measured: Example '7'" in capsys.readouterr().err
    figures = json.loads((straight / "metrics.json").read_text())
    found = json.loads((work / "metrics.json").read_text())
    assert found.items() <= figures.items() and f"{captions}_cider" in found
    for page in ("report.md", "report.html"):
        assert "set data.length to" in (work / page).read_text()
