"""NanoDet and WordNet, as tools/fetch_detector.py fetches them, and GRIT of real pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kosmos2_jax import train as trainer
from kosmos2_jax.cli import main
from kosmos2_jax.config import DecoderConfig, Kosmos2Config, ResamplerConfig, VisionConfig
from kosmos2_jax.data import document_files
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.documents import from_tf_example
from kosmos2_jax.data.grit_builder.detectors import DetectorError, Query
from kosmos2_jax.data.grit_builder.onnx_detector import OnnxConfig
from kosmos2_jax.data.grit_builder.wordnet import Bridge, WordNet
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.grounding.boxes import iou
from kosmos2_jax.training.optimizer import OptimizerConfig
from kosmos2_jax.training.run_config import RunConfig
from kosmos2_jax.vision.preprocessing import load_image

for package in ("apache_beam", "onnx", "onnxruntime", "spacy", "tf2onnx"):
    pytest.importorskip(package)

from onnx import TensorProto, helper, save  # noqa: E402

TOOL = Path(__file__).resolve().parents[3] / "tools/fetch_detector.py"

# Captions that spaCy's small model parses rightly, and the things of each phrase: boxes drawn by
# hand, as fractions.
CAPTIONS = {
    "two_dogs.jpg": "two puppies in a field of flowers",
    "man_ball.png": "a baseball player with a brown glove catches a ball",
    "six_planes.png": "small planes in the blue sky",
    "quadrocopter.jpg": "a man in blue jeans beside a drone",
    "carnaby_street.jpg": "a sign above the street",
}
THINGS = {
    "two puppies": [(0.269, 0.137, 0.511, 0.963), (0.507, 0.085, 0.746, 0.977)],
    "a baseball player": [(0.09, 0.296, 0.72, 0.921)],
    "a brown glove": [(0.614, 0.356, 0.729, 0.522)],
    "a ball": [(0.796, 0.087, 0.826, 0.132)],
    "small planes": [
        (0.18, 0.595, 0.254, 0.666), (0.274, 0.409, 0.349, 0.48), (0.314, 0.315, 0.39, 0.383),
        (0.461, 0.257, 0.537, 0.321), (0.43, 0.439, 0.501, 0.505), (0.639, 0.218, 0.714, 0.296),
    ],
    "a man": [(0.5, 0.176, 0.634, 0.94)],
}  # fmt: skip


@pytest.fixture(scope="module")
def nanodet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """detector.json of NanoDet, fetched; WordNet lies beside it."""
    folder = tmp_path_factory.mktemp("detectors") / "nanodet"
    words = [sys.executable, str(TOOL), "--out", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    if done.returncode and os.environ.get("CI") != "true":
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return folder / "detector.json"


@pytest.fixture(scope="module")
def wordnet(nanodet: Path) -> WordNet:
    return WordNet(nanodet.parent / "wordnet")


@pytest.mark.parametrize(
    ("phrases", "name"),
    [
        ("a man; Women; three children; the people; a baseball player; a bride", "person"),
        ("a person's dog; puppies; a corgi; the golden retriever; a guide dog", "dog"),
        ("a traffic light; TRAFFIC LIGHTS", "traffic light"),
        ("a hot dog", "hot dog"),
        ("a teddy bear", "teddy bear"),
        ("a polar bear", "bear"),
        ("geese; a seagull", "bird"),
        ("a plane; an airliner", "airplane"),
        ("a red stop sign", "stop sign"),
        ("a kitten; tabby", "cat"),
        ("the fridge", "refrigerator"),
        ("a TV", "tv"),
        ("a kite", "kite"),
        ("a mouse; a mug; the dog's tail; freedom; a couple; a lion", None),
        ("the White House; 雪だるま; ...", None),
    ],
)  # fmt: skip
def test_the_class_of_a_phrase(nanodet: Path, wordnet: WordNet, phrases: str, name: str | None):
    described = json.loads(nanodet.read_text())
    bridge = Bridge(described["classes"], described["synonyms"], wordnet)
    expected = None if name is None else described["classes"].index(name)
    assert {phrase: bridge.class_of(phrase) for phrase in phrases.split("; ")} == dict.fromkeys(
        phrases.split("; "), expected
    )


def test_the_nearest_class_and_no_class(wordnet: WordNet):
    bridge = Bridge(["animal", "dog", "gadget x"], {"gadget x": ["Thingamabob 9"]}, wordnet)
    phrases = ("a cat", "a puppy", "the gadget X", "a thingamabob 9", "a table", "")
    assert [bridge.class_of(phrase) for phrase in phrases] == [0, 1, 2, 2, None, None]


def test_hypernyms_are_those_of_the_manual(wordnet: WordNet):
    """The example of wn(1WN): a dog is a canine and a domestic animal, and at last an entity."""
    (dog, *_) = wordnet.senses("dog")
    lines = [wordnet._line(synset) for synset in wordnet.closure(dog)]
    names = [line[4] for line in lines]
    assert set(names[1:3]) == {"canine", "domestic_animal"} and names[-1] == "entity"
    assert len(names) == len(set(names))


def test_boxes_are_on_the_things(nanodet: Path, assets: Path):
    detector = OnnxConfig(str(nanodet)).open()
    image = load_image(assets / "images/man_ball.png")
    phrases = ("a sofa", "a ball", "the sky", "a man")
    (found, none) = detector.detect(
        [Query("0", image, "", phrases), Query("1", image, "", ("freedom", "a man", "a boy"))]
    )
    best = {
        phrases[i]: box for i, box in list(zip(found.phrase_ids, found.boxes, strict=True))[::-1]
    }
    assert best.keys() == {"a ball", "a man"} and not len(none.scores)
    assert iou(best["a man"], THINGS["a baseball player"][0]) > 0.8
    assert iou(best["a ball"], THINGS["a ball"][0]) > 0.8
    people = found.boxes[found.phrase_ids == 3]
    assert all(iou(a, b) <= 0.6 for i, a in enumerate(people) for b in people[:i])


@pytest.fixture(scope="module")
def built(nanodet: Path, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of GRIT built of the real pictures: data/grit/mine."""
    folder = tmp_path_factory.mktemp("built")
    lines = [f"{caption}\t{name}" for name, caption in CAPTIONS.items()]
    (folder / "captions.tsv").write_text("\n".join(lines))
    words = [
        "grit", "build", "captions-tsv", folder / "captions.tsv", "--images", assets / "images",
        "--out", folder / "data/grit/mine", "--detector", "onnx", "--model", nanodet,
        "--score-threshold", 0.5, "--nms-iou", 0.5, "--shards", 1, "--processes", 1,
        "--image-mode", "short", "--direct_running_mode=in_memory",
    ]  # fmt: skip
    assert main(list(map(str, words))) == 0
    return folder


def documents(built: Path) -> list:
    files = tf.io.gfile.glob(document_files.shard_pattern(built / "data/grit/mine", "train"))
    return [from_tf_example(raw) for raw in tf.data.TFRecordDataset(files).as_numpy_iterator()]


def test_a_build_of_real_pictures(built: Path):
    found = {document.content["caption"]: document for document in documents(built)}
    assert found.keys() == set(CAPTIONS.values()) - {CAPTIONS["carnaby_street.jpg"]}
    boxes: dict[str, list] = {}
    for caption, document in found.items():
        for start, end, *box, score in document.content["noun_chunks"]:
            assert score > 0.5
            boxes.setdefault(caption[int(start) : int(end)], []).append(box)
    assert boxes.keys() == THINGS.keys()
    for phrase, things in THINGS.items():
        pairs = [[iou(box, thing) for thing in things] for box in boxes[phrase]]
        # Every box is on a thing of its own, and but for one plane every thing has its box.
        assert all(max(row) > 0.6 for row in pairs), phrase
        assert len({int(np.argmax(row)) for row in pairs}) == len(pairs)
        assert len(pairs) == len(things) - (phrase == "small planes")
    puppies = found["two puppies in a field of flowers"].content
    assert {tuple(a[:2]) for a in puppies["ref_exps"]} == {(0, 33)}
    assert found["small planes in the blue sky"].size == (2247, 1500)


def test_what_was_built_trains(built: Path, tmp_path: Path, capsys):
    data = built / "data"
    sentences = [f"{caption}. An image of" for caption in CAPTIONS.values()] * 10
    train_sentencepiece(sentences, data / "sentencepiece.bpe.model", 60)
    run = RunConfig(
        model=Kosmos2Config(
            vision=VisionConfig(16, 8, 32, 1, 2, 32),
            resampler=ResamplerConfig(num_latents=4, attention_dropout=0.0),
            decoder=DecoderConfig(0, 32, 1, 2, 32, 160, dropout=0.0),
            grid_size=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, total_steps=2),
        data=DataConfig(
            tasks="mixtures", folder=str(data), rates={"grounded": 1.0}, batch_size=8, length=160,
            images=4, pack=True, streams=1, shuffle_buffer=4, score_threshold=0.5,
        ),
        log_every=1,
    )  # fmt: skip
    trainer.train(run, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["train/loss"]) for line in lines)
    said = capsys.readouterr().err
    assert "0 skipped" in said and "score below the threshold" not in said


@pytest.fixture
def tiny(nanodet: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a model of a dog and two cats, each scored by the mean of a channel of its input."""

    def write(**changes) -> Path:
        described = {
            "model": "tiny.onnx", "wordnet": str(nanodet.parent / "wordnet"), "size": [32, 16],
            "fit": "pad", "layout": "NCHW", "channels": "BGR", "mean": [0, 100, 0],
            "std": [255, 100, 255], "output": "rows", "classes": ["dog", "cat"],
        } | changes  # fmt: skip
        shape = [1, 3, 16, 32] if described["layout"] == "NCHW" else [1, 16, 32, 3]
        axes = [2, 3] if described["layout"] == "NCHW" else [1, 2]
        boxes = [[8.0, 0.0, 24.0, 8.0], [12.0, 4.0, 20.0, 12.0], [0.0, 0.0, 8.0, 8.0]]
        values = {"boxes": [boxes], "classes": [[[0.0], [1.0], [1.0]]]}
        constants = [
            helper.make_tensor(name, TensorProto.FLOAT, np.shape(v), np.ravel(v))
            for name, v in values.items()
        ]
        where = helper.make_tensor("where", TensorProto.INT64, [3], [1, 3, 1])
        nodes = [
            helper.make_node("ReduceMean", ["image"], ["means"], axes=axes, keepdims=0),
            helper.make_node("Reshape", ["means", "where"], ["scores"]),
            helper.make_node("Concat", ["boxes", "scores", "classes"], ["rows"], axis=2),
        ]
        graph = helper.make_graph(
            nodes, "tiny", [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [1, 3, 6])],
            [*constants, where],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        save(model, tmp_path / "tiny.onnx")
        (tmp_path / "detector.json").write_text(json.dumps(described))
        return tmp_path / "detector.json"

    return write


def test_how_pictures_are_prepared(tiny):
    image = Image.new("RGB", (64, 64), (230, 150, 26))
    query = Query("0", image, "", ("two cats", "a dog"))
    # A square picture fills half of the input, and borders count as black. Blue is too little, and
    # green negative. Sums of 512 values in float32 err by 512 * 2**-24 at most.
    (found,) = OnnxConfig(str(tiny())).open().detect([query])
    assert found.phrase_ids.tolist() == [0]
    np.testing.assert_allclose(found.scores, [230 / 255 / 2], atol=3e-5)
    np.testing.assert_allclose(found.boxes, [[-0.5, 0, 0, 0.5]])
    changes = {"fit": "stretch", "layout": "NHWC", "channels": "RGB", "mean": [0, 0, 0]}
    (found,) = OnnxConfig(str(tiny(**changes, std=[255, 255, 255]))).open().detect([query])
    assert found.phrase_ids.tolist() == [0, 0, 1]
    np.testing.assert_allclose(found.scores, [150 / 255, 26 / 255, 230 / 255], atol=3e-5)
    boxes = [[0.375, 0.25, 0.625, 0.75], [0, 0, 0.25, 0.5], [0.25, 0, 0.75, 0.5]]
    np.testing.assert_allclose(found.boxes, boxes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layout": "CHW"}, "layout must be NCHW or NHWC"),
        ({"size": [32]}, "size must be 2 numbers"),
        ({"std": [1, 0, 1]}, "size and std must be above 0"),
        ({"synonyms": {"cow": ["bull"]}}, "synonyms are of 'cow', which is no class"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
        ({"wordnet": "."}, "holds no WordNet"),
        ({"model": "none.onnx"}, "none.onnx' cannot be loaded"),
    ],
)
def test_descriptions_that_are_wrong(tiny, changes: dict, said: str):
    with pytest.raises(DetectorError, match=said):
        OnnxConfig(str(tiny(**changes))).open()


def test_models_that_are_other_ones(tiny):
    image = Image.new("RGB", (64, 64))
    query = Query("0", image, "", ("a dog",))
    path = tiny()
    wrong = json.loads(path.read_text())
    for change, said in (
        ({"output": "gfl"}, r"not 'gfl': there are \[1, 3, 6\] for 2 classes"),
        ({"size": [64, 64]}, "'tiny.onnx' fails: .*dimension"),
    ):
        path.write_text(json.dumps(wrong | change))
        with pytest.raises(DetectorError, match=said):
            OnnxConfig(str(path)).open().detect([query])
    path.write_text("{")
    with pytest.raises(DetectorError, match="does not describe an ONNX detector"):
        OnnxConfig(str(path)).open()
    with pytest.raises(DetectorError, match="There is no description of an ONNX detector"):
        OnnxConfig("none.json").open()


def test_packages_that_are_not_the_expected_ones(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    words = [sys.executable, str(TOOL), "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and "npm is not installed" in done.stderr
    assert not (tmp_path / "out").exists() and shutil.which("npm") is None
