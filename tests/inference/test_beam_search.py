"""Beam search: token for token as transformers; fairseq's rules against a literal restatement."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import torch

from kosmos2_jax.config import XPOS, preset
from kosmos2_jax.inference.beam_search import beam_search
from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.ngram import HUGGING_FACE, OFFICIAL
from kosmos2_jax.inference.prompt_batch import batch_prompts
from kosmos2_jax.inference.sampling import FAIRSEQ, SamplingConfig
from kosmos2_jax.models.kosmos2 import Kosmos2

CONFIG = preset("tiny").replace(
    vision={"num_layers": 1},
    decoder={"vocab_size": 90, "hidden_size": 32, "num_layers": 2, "num_heads": 2},
)
STEPS = 20
PARTS = ([11], ["image", 2], [3, "image", 1], [2])


@pytest.fixture(scope="module")
def reference(make_reference):
    return make_reference(CONFIG)


@pytest.fixture(scope="module")
def lively(reference):
    """The same with an embedding of `</s>` at which it comes now and then."""
    params = jax.tree.map(np.copy, reference.params)
    params["decoder"]["token_embedding"][2] *= 3
    return params


@pytest.fixture(scope="module")
def prompts(random_prompt):
    rng = np.random.default_rng(4)
    return [random_prompt(CONFIG, rng, parts) for parts in PARTS]


def _theirs(model, params, prompt, beams: int, ngram: int, penalty: float):  # noqa: ANN001, ANN202
    ids = torch.from_numpy(prompt.ids).long()[None]
    options = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": STEPS,
        "no_repeat_ngram_size": ngram, "do_sample": False, "num_beams": beams, "eos_token_id": 2,
        "pad_token_id": 1, "suppress_tokens": [1], "return_dict_in_generate": True,
        "num_return_sequences": beams, "length_penalty": penalty, "output_scores": True,
    }  # fmt: skip
    table = model.text_model.model.embed_tokens.weight
    before = table.detach().clone()
    try:
        with torch.no_grad():
            table[:90].copy_(torch.from_numpy(params["decoder"]["token_embedding"][:90]))
            if prompt.images:
                mean, std = np.float32(
                    [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]]
                )
                pixels = (np.stack(prompt.images).astype(np.float32) / 255 - mean) / std
                result = model.generate(
                    pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
                    image_embeds_position_mask=torch.from_numpy(prompt.image_slots >= 0).long()[
                        None
                    ],
                    **options,
                )
            else:
                result = model.text_model.generate(**options)
    finally:
        with torch.no_grad():
            table.copy_(before)
    new = result.sequences[:, len(prompt.ids) :].tolist()
    ended = [row.index(2) + 1 if 2 in row else len(row) for row in new]
    # transformers fills up with pad as far as its longest row goes.
    found = [[t for t in row[:end] if t != 1] for row, end in zip(new, ended, strict=True)]
    return found, result.sequences_scores.numpy()


def _ours(hypotheses, row: int) -> list[list[int]]:  # noqa: ANN001
    return [
        tokens[:length].tolist()
        for tokens, length in zip(hypotheses.tokens[row], hypotheses.lengths[row], strict=True)
    ]


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_beams_equal_transformers(beams: int, reference, lively, prompts):
    batch = batch_prompts(prompts, max_length=127)
    lengths = set()
    for ngram, penalty in ((0, 1.0), (3, 1.0), (2, 0.3), (0, 2.0)):
        sampling = SamplingConfig(
            STEPS, ngram, HUGGING_FACE, num_beams=beams, length_penalty=penalty
        )
        ours = jax.device_get(beam_search(CONFIG, lively, batch, sampling))
        best = jax.device_get(Kosmos2Model(CONFIG, sampling).generate(lively, batch))
        for row, prompt in enumerate(prompts):
            tokens, scores = _theirs(reference.model, lively, prompt, beams, ngram, penalty)
            assert _ours(ours, row) == tokens, (ngram, penalty, row)
            np.testing.assert_allclose(ours.scores[row], scores, atol=1e-4)
            lengths |= set(map(len, tokens))
            assert best.tokens[row, : best.lengths[row]].tolist() == tokens[0]
            sums = ours.log_probs[row].sum(-1) / ours.lengths[row] ** np.float32(penalty)
            np.testing.assert_allclose(sums, scores, atol=1e-4)
    assert len(lengths) > 3 and STEPS in lengths  # some ended of themselves, some did not


def _next_log_probs(config, params, prompt, written: list[list[int]]) -> np.ndarray:  # noqa: ANN001
    """Log-probabilities at every place, by whole forward passes without a cache."""
    length = 48
    rows = np.full((len(written), length), 1, np.int32)
    slots = np.full((len(written), length), -1, np.int32)
    for row, tokens in enumerate(written):
        ids = [*prompt.ids.tolist(), *tokens]
        rows[row, : len(ids)] = ids
        slots[row, : len(prompt.ids)] = prompt.image_slots
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), rows.shape)
    images = np.stack([prompt.images] * len(written)) if prompt.images else None
    logits = _forward(config, params, rows, positions, images, slots)
    return np.asarray(jax.nn.log_softmax(logits), np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, rows, positions, images, slots):  # noqa: ANN001, ANN202
    features = (rows, positions, jax.numpy.ones_like(rows), images, slots)
    return Kosmos2(config).apply({"params": params}, *features)


def _fairseq(config, params, prompt, sampling):  # noqa: ANN001, ANN202
    """Spec 4.8 and T-51 to the letter, one prompt, no cache."""
    beams, places = sampling.num_beams, len(prompt.ids)
    start = _next_log_probs(config, params, prompt, [[]])[0]
    forced = sum(start[i, prompt.ids[i + 1]] for i in range(places - 1))
    running, finished = [([], 0.0)], []
    for step in range(sampling.max_new_tokens):
        written = [tokens for tokens, _ in running]
        table = _next_log_probs(config, params, prompt, written)[:, places - 1 + step]
        candidates = []
        for beam, (tokens, score) in enumerate(running):
            whole = [*prompt.ids.tolist(), *tokens]
            size = sampling.no_repeat_ngram_size
            grams = {tuple(whole[i : i + size]) for i in range(len(whole) - size + 1)}
            for token in range(config.decoder.vocab_size):
                blocked = size and step and tuple([*whole, token][-size:]) in grams
                if token == 1 or blocked or (step == sampling.max_new_tokens - 1 and token != 2):
                    continue
                candidates.append((score + table[beam, token], [*tokens, token]))
        candidates = sorted(candidates, key=lambda pair: -pair[0])[: 2 * beams]
        running = []
        for rank, (score, tokens) in enumerate(candidates):
            if tokens[-1] == 2 and step:  # an `</s>` that comes first does not end it
                if rank < beams and len(finished) < beams:
                    total = (forced + score) / (places + step) ** sampling.length_penalty
                    finished.append((total, tokens))
            elif len(running) < beams:
                running.append((tokens, score))
        if len(finished) == beams:
            break
    return sorted(finished, key=lambda pair: -pair[0])


def test_fairseq_normalisation_equals_its_restatement(lively, prompts):
    winners = []
    for number, penalty in ((1, 1.0), (2, 1.0), (2, 0.6)):
        prompt = prompts[number]
        settings = {"num_beams": 3, "length_penalty": penalty}
        sampling = SamplingConfig(12, 3, OFFICIAL, beam_normalization=FAIRSEQ, **settings)
        batch = batch_prompts([prompt], max_length=127)
        ours = jax.device_get(beam_search(CONFIG, lively, batch, sampling))
        expected = _fairseq(CONFIG, lively, prompt, sampling)
        assert _ours(ours, 0)[: len(expected)] == [tokens for _, tokens in expected]
        scores = [score for score, _ in expected]
        np.testing.assert_allclose(ours.scores[0][: len(expected)], scores, atol=1e-4)
        other = beam_search(CONFIG, lively, batch, SamplingConfig(12, 3, OFFICIAL, **settings))
        winners.append((_ours(ours, 0)[0], _ours(jax.device_get(other), 0)[0]))
    assert any(ours != other for ours, other in winners)  # it changes who wins


def test_log_probs_equal_the_full_forward(lively, prompts):
    """Positions are those of the text, not the slots'; a beam sees its own ancestors only."""
    config = CONFIG.replace(decoder={"position": XPOS})
    batch = batch_prompts(prompts, max_length=127)
    sampling = SamplingConfig(STEPS, 3, HUGGING_FACE, num_beams=3)
    found = jax.device_get(beam_search(config, lively, batch, sampling))
    for row, prompt in enumerate(prompts):
        written = _ours(found, row)
        table = _next_log_probs(config, lively, prompt, written)
        for beam, tokens in enumerate(written):
            places = len(prompt.ids) - 1 + np.arange(len(tokens))
            expected = table[beam, places, tokens]
            np.testing.assert_allclose(
                found.log_probs[row, beam, : len(tokens)], expected, atol=1e-4
            )
