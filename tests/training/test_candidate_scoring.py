"""Candidates with pictures before and between words, over devices, against transformers."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from kosmos2_jax.config import preset
from kosmos2_jax.data.choices import CandidateRow
from kosmos2_jax.errors import MarkupError
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.partitioning import batch_sharding, make_mesh
from kosmos2_jax.training.candidate_scoring import Asked, CandidateScoring, most_likely
from kosmos2_jax.training.processes import WHOLE

CONFIG = preset("tiny").replace(
    vision={"num_layers": 1},
    decoder={"vocab_size": 90, "hidden_size": 32, "num_layers": 2, "num_heads": 2},
)
LATENTS = CONFIG.resampler.num_latents
MEAN, STD = np.float32([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])


@pytest.fixture(scope="module")
def reference(make_reference):
    return make_reference(CONFIG)


def row(parts: list[int | list[int]], pictures: list[int], answers: list[list[int]]):
    """A number is a picture of the row, a list words."""
    ids, slots = [0], [-1]
    for part in parts:
        if isinstance(part, int):
            ids += [88, *range(4, 4 + LATENTS), 89]
            slots += [-1, *range(part * LATENTS, (part + 1) * LATENTS), -1]
        else:
            ids += part
            slots += [-1] * len(part)
    return CandidateRow(ids, slots, pictures, answers)


def theirs(model, ids: list[int], slots: list[int], images: np.ndarray, answer: list[int]):
    """transformers' log probabilities of the answer's tokens."""
    tokens = torch.tensor([[*ids, *answer]])
    with torch.no_grad():
        if len(images):
            pixels = (np.float32(images) / 255 - MEAN) / STD
            mask = torch.tensor([[*(slot >= 0 for slot in slots), *[False] * len(answer)]])
            logits = model(
                pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
                input_ids=tokens,
                image_embeds_position_mask=mask.long(),
            ).logits
        else:
            logits = model.text_model(input_ids=tokens).logits
    log_probs = logits[0].double().log_softmax(-1).numpy()
    return log_probs[len(ids) - 1 + np.arange(len(answer)), answer]


def test_log_likelihoods_equal_transformers_over_devices(reference):
    size = CONFIG.vision.image_size
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    matrix = [row([[20], 0, [21], 1, [22, 23]], [0, other], [[30]]) for other in (1, 2)]
    words = [row([[40, 41, 42]], [], [[50, 51], [50], [50, 52, 53], [54]])]
    seen = [row([0, [60, 61]], [1], [[70, 71], [72]])]
    mesh = make_mesh({"data": 4}, jax.devices()[:4])
    with jax.set_mesh(mesh):
        scoring = CandidateScoring(Kosmos2Model(CONFIG), batch_sharding(mesh), 4, WHOLE)
        # Five rows: two batches, the second filled up.
        behind = 1 + LATENTS + 2
        asked = [
            Asked(matrix, images),
            Asked(words, images),
            Asked(seen, images, rationale=[80, 81, 82], place=behind),
            Asked(seen, images),
        ]
        found = scoring(reference.params, asked)
    assert [len(scores) for scores in found] == [2, 4, 2, 2]
    for example, scores in zip(asked, found, strict=True):
        expected = []
        for own in example.rows:
            ids, slots = list(own.ids), list(own.image_slots)
            ids[example.place : example.place] = example.rationale
            slots[example.place : example.place] = [-1] * len(example.rationale)
            shown = images[own.pictures]
            expected += [theirs(reference.model, ids, slots, shown, a) for a in own.answers]
        for ours, other in zip(scores, expected, strict=True):
            np.testing.assert_allclose(ours, other, atol=1e-4)
    assert found[2] != found[3]
    best = max(range(4), key=lambda number: sum(found[1][number]))
    assert most_likely(words, found[1]) == words[0].answers[best]


def test_what_is_too_long_is_named(reference):
    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        scoring = CandidateScoring(Kosmos2Model(CONFIG), batch_sharding(mesh), 1, WHOLE)
        long = Asked([row([[5] * 125], [], [[6] * 5])], np.zeros(0))
        with pytest.raises(MarkupError, match="131 tokens, but the model reads at most"):
            scoring(reference.params, [long])
