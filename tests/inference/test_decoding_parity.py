"""Generated tokens against transformers, batched rows against unpadded references."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import jax
import numpy as np
import pytest
import torch

from kosmos2_jax.config import XPOS, Kosmos2Config, preset
from kosmos2_jax.inference import decoding
from kosmos2_jax.inference.decoding import generate, prefill
from kosmos2_jax.inference.ngram import HUGGING_FACE
from kosmos2_jax.inference.prompt_batch import Prompt, PromptBatch, batch_prompts
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.interop.layout import stack_layers
from kosmos2_jax.models.kosmos2 import Kosmos2

STEPS = 32
LIKE_TRANSFORMERS = SamplingConfig(STEPS, 3, HUGGING_FACE)
# Text before, between and after pictures, one picture, several, none; ragged lengths.
RAGGED = (["image", 6], [3, "image", 2, "image", 9], [11], ["image", "image", "image", 1], [1])
SHAPES = {
    "tiny": preset("tiny"),
    "wide": preset("tiny").replace(
        vision={"image_size": 42, "hidden_size": 32, "num_heads": 4, "num_layers": 1},
        resampler={"num_latents": 3},
        decoder={"vocab_size": 200, "hidden_size": 48, "num_heads": 2, "num_layers": 2},
    ),
    "deep": preset("tiny").replace(
        vision={"num_layers": 1},
        resampler={"num_latents": 1},
        decoder={"vocab_size": 90, "hidden_size": 16, "num_layers": 4, "mlp_dim": 24},
    ),
}


def _ragged(
    config: Kosmos2Config, random_prompt: Callable[..., Prompt], seed: int
) -> tuple[PromptBatch, list[Prompt]]:
    rng = np.random.default_rng(seed)
    prompts = [random_prompt(config, rng, parts) for parts in RAGGED]
    return batch_prompts(prompts, max_length=128), prompts


def _theirs(model, prompt: Prompt, ngram: int) -> tuple[list[int], np.ndarray]:  # noqa: ANN001
    """What transformers writes after one unpadded prompt, and its log-probabilities."""
    ids = torch.from_numpy(prompt.ids).long()[None]
    options = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": STEPS,
        "no_repeat_ngram_size": ngram, "do_sample": False, "num_beams": 1, "eos_token_id": 2,
        "pad_token_id": 1, "suppress_tokens": [1], "output_logits": True,
        "return_dict_in_generate": True,
    }  # fmt: skip
    with torch.no_grad():
        if prompt.images:
            mean, std = np.float32(
                [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]]
            )
            pixels = (np.stack(prompt.images).astype(np.float32) / 255 - mean) / std
            result = model.generate(
                pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
                image_embeds_position_mask=torch.from_numpy(prompt.image_slots >= 0).long()[None],
                **options,
            )
        else:
            result = model.text_model.generate(**options)
    new = result.sequences[0, len(prompt.ids) :].tolist()
    logits = torch.stack(result.logits)[:, 0].double().log_softmax(-1).numpy()
    return new, logits[np.arange(len(new)), new]


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_equal_transformers(shape: str, make_reference, random_prompt):
    reference = make_reference(SHAPES[shape])
    batch, prompts = _ragged(reference.config, random_prompt, seed=1)
    ours = jax.device_get(generate(reference.config, reference.params, batch, LIKE_TRANSFORMERS))
    longest = 0
    for row, prompt in enumerate(prompts):
        tokens, log_probs = _theirs(reference.model, prompt, 3)
        length = ours.lengths[row]
        assert ours.tokens[row, :length].tolist() == tokens
        np.testing.assert_allclose(ours.log_probs[row, :length], log_probs, atol=1e-4)
        assert (ours.tokens[row, length:] == 1).all() and (ours.log_probs[row, length:] == 0).all()
        longest = max(longest, length)
    assert longest == STEPS


def test_blocking_acts_and_can_be_off(make_reference, random_prompt):
    reference = make_reference(SHAPES["wide"])
    batch, prompts = _ragged(reference.config, random_prompt, seed=1)
    off = SamplingConfig(STEPS, 0, HUGGING_FACE)
    free = generate(reference.config, reference.params, batch, off)
    blocked = generate(reference.config, reference.params, batch, LIKE_TRANSFORMERS)
    assert np.asarray(free.tokens)[0].tolist() == _theirs(reference.model, prompts[0], 0)[0]
    assert (np.asarray(free.tokens)[0] != np.asarray(blocked.tokens)[0]).any()


def test_stacked_layers_write_the_same(make_reference, random_prompt):
    reference = make_reference(SHAPES["wide"])
    batch, _ = _ragged(reference.config, random_prompt, seed=2)
    plain = generate(reference.config, reference.params, batch, LIKE_TRANSFORMERS)
    scanned = generate(
        reference.config.replace(scan_layers=True),
        stack_layers(reference.params, reference.config),
        batch,
        LIKE_TRANSFORMERS,
    )
    np.testing.assert_array_equal(plain.tokens, scanned.tokens)
    np.testing.assert_allclose(plain.log_probs, scanned.log_probs, atol=1e-5)


@pytest.mark.parametrize(("position", "scan"), [("sinusoidal", False), (XPOS, False), (XPOS, True)])
def test_steps_equal_the_full_forward(position: str, scan: bool, make_reference, random_prompt):
    reference = make_reference(SHAPES["wide"])
    config = reference.config.replace(decoder={"position": position}, scan_layers=scan)
    params = stack_layers(reference.params, config) if scan else reference.params
    rng = np.random.default_rng(3)
    prompts = [random_prompt(config, rng, parts) for parts in (["image", 30], [2, "image", 15])]
    batch = batch_prompts(prompts, max_length=128)
    full = _full_logits(config, params, batch)
    known = np.array([9, 11], np.int32)  # read at once, pictures included; then one by one
    logits, cache = jax.jit(functools.partial(prefill, config, cache_length=64))(
        params, batch.tokens, known, batch.image_slots, batch.images
    )
    read_one = jax.jit(functools.partial(_read_one, config, params))
    rows = np.arange(2)
    for _ in range(int((batch.lengths - known).min()) + 1):
        np.testing.assert_allclose(
            logits, full[rows, known - 1], rtol=0, atol=1e-5 * np.abs(full).max()
        )
        logits, cache = read_one(batch.tokens[rows, known], known, cache)
        known = known + 1


def _read_one(config, params, tokens, slots, cache):  # noqa: ANN001, ANN202
    module = Kosmos2(config).bind({"params": params})
    hidden, cache = module.extend(tokens[:, None], slots[:, None], cache)
    return module.logits(hidden)[:, 0], cache


def _full_logits(config: Kosmos2Config, params, batch) -> np.ndarray:  # noqa: ANN001
    rows, places = batch.tokens.shape
    positions = np.broadcast_to(np.arange(places, dtype=np.int32), (rows, places))
    segments = (positions < batch.lengths[:, None]).astype(np.int32)
    apply = jax.jit(Kosmos2(config).apply)
    return np.asarray(
        apply({"params": params}, batch.tokens, positions, segments, batch.images,
              batch.image_slots)
    )  # fmt: skip


def test_prompts_of_one_bucket_share_a_program(make_reference, random_prompt):
    reference = make_reference(SHAPES["wide"])
    settings = SamplingConfig(4, 3, HUGGING_FACE)

    def run(*texts: int) -> None:
        prompts = [random_prompt(reference.config, np.random.default_rng(n), [n]) for n in texts]
        batch = batch_prompts(prompts, max_length=128)
        generate(reference.config, reference.params, batch, settings)

    run(5, 50)
    compiled = decoding._generate._cache_size()
    for text in (1, 17, 40):
        run(text, 63)
    assert decoding._generate._cache_size() == compiled
    run(5, 64)
    assert decoding._generate._cache_size() == compiled + 1


def test_rows_end_at_stop_tokens_and_at_the_longest_length(make_reference, random_prompt):
    reference = make_reference(SHAPES["wide"])
    batch, _ = _ragged(reference.config, random_prompt, seed=1)
    free = jax.device_get(generate(reference.config, reference.params, batch, LIKE_TRANSFORMERS))
    stop = int(free.tokens[0, 4])
    limit = int(batch.lengths.max()) + 3
    ended = generate(
        reference.config.replace(decoder={"max_length": limit}),
        reference.params,
        batch,
        SamplingConfig(STEPS, 3, HUGGING_FACE, stop_ids=(stop,)),
    )
    for row, tokens in enumerate(free.tokens.tolist()):
        tokens = tokens[: free.lengths[row]]
        expected = tokens.index(stop) + 1 if stop in tokens else len(tokens)
        expected = min(expected, limit - int(batch.lengths[row]))
        assert int(ended.lengths[row]) == expected
        assert ended.tokens[row, :expected].tolist() == tokens[:expected]
    assert 3 in ended.lengths and (ended.lengths[0] == free.tokens[0].tolist().index(stop) + 1)


def test_steps_of_one_row_do_not_copy_the_cache(make_reference, random_prompt):
    reference = make_reference(SHAPES["tiny"])
    config = reference.config
    prompt = random_prompt(config, np.random.default_rng(0), ["image", 6])
    batch = batch_prompts([prompt], max_length=128)
    write = jax.jit(lambda params, batch: generate(config, params, batch, LIKE_TRANSFORMERS))
    program = write.lower(reference.params, batch).compile().as_text()
    heads, size = config.decoder.num_heads, config.decoder.hidden_size
    shape = f"f32[1,{heads},{batch.tokens.shape[1] + STEPS},{size // heads}]"
    assert shape in program
    assert not re.search(rf"= {re.escape(shape)}\S* copy\(", program)
