"""OWLv2, tiny and random, beside transformers' own reading of its outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kosmos2_jax.data.grit_builder.detectors import DetectorError, Query  # noqa: E402
from kosmos2_jax.data.grit_builder.transformers_detector import TransformersConfig  # noqa: E402


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owl")
    letters = [chr(i) for i in range(97, 123)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        pad_token="<|endoftext|>",
        model_max_length=16,
    )
    images = transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    transformers.Owlv2Processor(images, tokenizer).save_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2}
    config = transformers.Owlv2Config(
        text_config={**tower, "vocab_size": len(tokens), "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    transformers.Owlv2ForObjectDetection(config).save_pretrained(folder)
    return folder


def _sorted(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    table = np.concatenate([boxes, scores[:, None]], axis=1)
    return table[np.lexsort(table.T)]


def test_owlv2(owl: Path, queries: list[Query]) -> None:
    found = TransformersConfig(str(owl)).open().detect(queries)
    processor = transformers.AutoProcessor.from_pretrained(owl)
    model = transformers.Owlv2ForObjectDetection.from_pretrained(owl)
    for query, ours in zip(queries, found, strict=True):
        inputs = processor(text=[list(query.phrases)], images=query.image, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        size = (query.image.height, query.image.width)
        (theirs,) = processor.post_process_grounded_object_detection(
            outputs, threshold=0.1, target_sizes=[size]
        )
        sides = np.array([*size[::-1], *size[::-1]])
        expected = _sorted(theirs["boxes"].numpy() / sides, theirs["scores"].numpy())
        assert len(expected) and set(ours.phrase_ids) <= set(range(len(query.phrases)))
        np.testing.assert_allclose(_sorted(ours.boxes, ours.scores), expected, atol=1e-4)
        assert sorted(ours.phrase_ids) == sorted(theirs["labels"].tolist())


def test_folders_that_hold_no_detector(tmp_path: Path, owl: Path) -> None:
    with pytest.raises(DetectorError, match="holds no detector of transformers"):
        TransformersConfig(str(tmp_path)).open()
    (weights,) = owl.glob("*.safetensors")
    kept = weights.read_bytes()
    weights.unlink()
    torch.save({}, owl / "pytorch_model.bin")
    try:
        with pytest.raises(DetectorError, match="holds no detector"):
            TransformersConfig(str(owl)).open()
    finally:
        weights.write_bytes(kept)
        (owl / "pytorch_model.bin").unlink()
