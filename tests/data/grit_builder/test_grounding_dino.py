"""Grounding DINO, tiny and random, beside transformers' own reading of its outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kosmos2_jax.data.grit_builder.detectors import Query  # noqa: E402
from kosmos2_jax.data.grit_builder.transformers_detector import TransformersConfig  # noqa: E402

WORDS = "a the red dog cat hat with sofa of . on two".split()


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
    # Grounding DINO knows [CLS], [SEP], "." and "?" by BERT's ids.
    table = {101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?", 0: "[PAD]", 100: "[UNK]"}
    names = [word for word in vocabulary if word not in table.values()]
    lines = [table.get(i) or (names.pop(0) if names else f"[unused{i}]") for i in range(1030)]
    (folder / "vocab.txt").write_text("\n".join(lines))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    images = transformers.GroundingDinoImageProcessor(
        size={"shortest_edge": 128, "longest_edge": 256}
    )
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=transformers.BertConfig(
            vocab_size=1030, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32,
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=12, max_text_len=32,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    return folder


def test_grounding_dino(dino: Path, queries: list[Query]) -> None:
    detector = TransformersConfig(str(dino)).open()
    assert [len(found.scores) > 0 for found in detector.detect(queries)] == [True, True]
    processor = transformers.AutoProcessor.from_pretrained(dino)
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(dino)
    for query in queries:
        text = " ".join(f"{phrase}." for phrase in query.phrases)
        (alone,) = detector.detect([query])
        assert len(alone.scores) and set(alone.phrase_ids) <= set(range(len(query.phrases)))
        inputs = processor(text=text, images=query.image, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        (theirs,) = processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=0.0, text_threshold=0.0,
            target_sizes=[(1, 1)],
        )  # fmt: skip
        # Each of our boxes is theirs, and scores no more: they count full stops and [CLS] too.
        boxes, scores = theirs["boxes"].numpy(), theirs["scores"].numpy()
        distance = np.abs(boxes[None] - alone.boxes[:, None]).max(axis=2)
        assert distance.min(axis=1).max() < 1e-5
        assert (alone.scores <= scores[distance.argmin(axis=1)] + 1e-6).all()
        # The score of a phrase is the best of its own tokens.
        tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
        ends = [i for i, token in enumerate(tokens) if token == "."]
        starts = [1, *(i + 1 for i in ends[:-1])]
        by_token = outputs.logits[0].sigmoid().numpy()
        table = np.stack([by_token[:, a:b].max(axis=1) for a, b in zip(starts, ends, strict=True)])
        rows = distance.argmin(axis=1)
        np.testing.assert_allclose(alone.scores, table.max(axis=0)[rows], atol=1e-5)
        assert alone.phrase_ids.tolist() == table.argmax(axis=0)[rows].tolist()
