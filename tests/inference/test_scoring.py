"""Log-likelihoods against transformers, and boxes against whole forward passes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from kosmos2_jax.config import XPOS, preset
from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding import cells_to_box, iou
from kosmos2_jax.inference.scoring import Trie, score_continuations, top_boxes
from kosmos2_jax.models.kosmos2 import Kosmos2

CONFIG = preset("tiny").replace(
    vision={"num_layers": 1},
    decoder={"vocab_size": 90, "hidden_size": 32, "num_layers": 2, "num_heads": 2},
)
MEAN, STD = np.float32([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])


@pytest.fixture(scope="module")
def reference(make_reference):
    return make_reference(CONFIG)


def _theirs(model, prompt, continuation: list[int]) -> np.ndarray:  # noqa: ANN001
    ids = torch.tensor([[*prompt.ids.tolist(), *continuation]])
    with torch.no_grad():
        if prompt.images:
            pixels = ((np.stack(prompt.images).astype(np.float32) / 255 - MEAN) / STD).transpose(
                0, 3, 1, 2
            )
            slots = np.append(prompt.image_slots >= 0, [False] * len(continuation))
            logits = model(
                pixel_values=torch.from_numpy(pixels.copy()),
                input_ids=ids,
                image_embeds_position_mask=torch.from_numpy(slots).long()[None],
            ).logits
        else:
            logits = model.text_model(input_ids=ids).logits
    log_probs = logits[0].double().log_softmax(-1).numpy()
    places = len(prompt.ids) - 1 + np.arange(len(continuation))
    return log_probs[places, continuation]


def test_log_likelihoods_equal_transformers(reference, random_prompt):
    rng = np.random.default_rng(0)
    prompts = [random_prompt(CONFIG, rng, parts) for parts in ([7], ["image", 3], [2, "image", 1])]
    # Many that begin alike, among them beginnings of others; so many that chunks are needed.
    many = [rng.integers(4, 8, rng.integers(1, 8)).tolist() for _ in range(60)]
    answers = [many, [[9, 8], [9, 8, 7], [9], [30]], [[5]]]
    assert len(Trie(many).reads) > 64 > sum(map(len, many)) / 5
    found = score_continuations(CONFIG, reference.params, prompts, answers)
    for prompt, own, scores in zip(prompts, answers, found, strict=True):
        assert len(scores) == len(own)
        for continuation, log_probs in zip(
            own[::7] if own is many else own, scores[::7] if own is many else scores, strict=True
        ):
            expected = _theirs(reference.model, prompt, continuation)
            np.testing.assert_allclose(log_probs, expected, atol=1e-4)
    # Each in a row of its own, where nothing is shared.
    alone = score_continuations(
        CONFIG, reference.params, [prompts[1]] * 4, [[answer] for answer in answers[1]]
    )
    for (own,), shared in zip(alone, found[1], strict=True):
        np.testing.assert_allclose(own, shared, atol=1e-5)


def test_the_best_boxes_are_those_of_whole_forward_passes(reference, random_prompt):
    config = CONFIG.replace(decoder={"position": XPOS})
    prompt = random_prompt(config, np.random.default_rng(2), ["image", 4])
    cells = config.grid_size**2
    first_id = config.decoder.vocab_size - cells
    ids = np.array([[*prompt.ids, first_id + cell] for cell in range(cells)], np.int32)
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    slots = np.pad(prompt.image_slots, (0, 1), constant_values=-1)
    logits = jax.jit(Kosmos2(config).apply)(
        {"params": reference.params}, ids, positions, np.ones_like(ids),
        np.stack([prompt.images] * cells), np.stack([slots] * cells),
    )  # fmt: skip
    shares = np.asarray(jax.nn.softmax(logits), np.float64)[..., first_id:]
    joint = {
        (a, b): shares[0, -2, a] * shares[a, -1, b]
        for a in range(cells)
        for b in range(cells)
        if b % 4 >= a % 4 and b // 4 >= a // 4
    }

    def near(a: int, b: int) -> bool:
        return abs(a % 4 - b % 4) <= 1 and abs(a // 4 - b // 4) <= 1

    found = top_boxes(config, reference.params, prompt, 12, max_iou=1.0)
    best = sorted(joint, key=lambda pair: -joint[pair])[:12]
    assert [entry.box for entry in found] == [cells_to_box(*pair, 4) for pair in best]
    np.testing.assert_allclose([e.score for e in found], [joint[p] for p in best], rtol=1e-4)
    marginal = [sum(joint[q] for q in joint if near(p[0], q[0]) and near(p[1], q[1])) for p in best]
    np.testing.assert_allclose([e.marginal_score for e in found], marginal, rtol=1e-4)
    apart = top_boxes(config, reference.params, prompt, 5, max_iou=0.3)
    assert apart[0] == found[0] and len(apart) == 5
    pairs = [(a.box, b.box) for n, a in enumerate(apart) for b in apart[:n]]
    assert all(iou(*pair) <= 0.3 for pair in pairs)


@pytest.mark.parametrize(
    ("answers", "message"), [([], "nothing"), ([[5], []], "nothing"), ([[5] * 125], "shorten")]
)
def test_what_cannot_be_scored_is_refused(answers, message, reference, random_prompt):
    prompt = random_prompt(CONFIG, np.random.default_rng(0), [5])
    with pytest.raises(MarkupError, match=message):
        score_continuations(CONFIG, reference.params, [prompt], [answers])
