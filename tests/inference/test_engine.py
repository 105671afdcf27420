"""The engine: outputs in company equal outputs alone, streaming, stopping, bad requests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from flax.errors import ScopeCollectionNotFound

from kosmos2_jax.errors import BusyError, ConfigError, ImageError, Kosmos2Error, MarkupError
from kosmos2_jax.inference.decoding import generate
from kosmos2_jax.inference.engine import Engine
from kosmos2_jax.inference.ngram import HUGGING_FACE
from kosmos2_jax.inference.prompt_batch import Prompt, batch_prompts
from kosmos2_jax.inference.requests import CANCELLED, END, LENGTH, STOP, Output, Request
from kosmos2_jax.inference.sampling import SamplingConfig

# Few kinds, for each is compiled: no picture, one, two.
PARTS = ([3], [9], ["image", 1], ["image", 4], [2, "image", 3, "image", 2])
SETTINGS = (
    SamplingConfig(20, 0),
    SamplingConfig(9, 2, HUGGING_FACE),
    SamplingConfig(20, temperature=1.0),
    SamplingConfig(13, 3, HUGGING_FACE, temperature=1.3, top_k=7, repetition_penalty=1.4),
    SamplingConfig(20, 0, temperature=0.8, top_p=0.8, num_outputs=2),
    SamplingConfig(20, 4, repetition_penalty=1.2, stop_ids=tuple(range(20, 28))),
    SamplingConfig(20, 3, temperature=1.0, grammar=True),
)


@pytest.fixture(scope="module")
def params(small_config, random_params) -> dict:
    params = random_params(small_config)
    params["decoder"]["token_embedding"][2] *= 2  # or else `</s>` hardly ever comes
    return params


@pytest.fixture(scope="module")
def engine(small_config, small_vocabulary, params):
    with Engine(
        small_config, params, small_vocabulary, rows=4, cache_lengths=(32, 64), steps=3
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def prompts(small_config, random_prompt) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [random_prompt(small_config, rng, PARTS[n % len(PARTS)]) for n in range(64)]


def test_64_mixed_requests_give_what_they_give_alone(engine: Engine, prompts: list[Prompt]):
    requests = [
        Request(prompt, dataclasses.replace(SETTINGS[n % len(SETTINGS)], seed=n))
        for n, prompt in enumerate(prompts)
    ]
    together = engine.generate(requests)
    backwards = engine.generate(requests[::-1])[::-1]
    alone = [engine.generate([request])[0] for request in requests]
    for request, *found in zip(requests, together, backwards, alone, strict=True):
        tokens = [[output.ids for output in outputs] for outputs in found]
        assert tokens[0] == tokens[1] == tokens[2], request.sampling
        assert len(tokens[0]) == request.sampling.num_outputs
        for outputs in found[:2]:
            for output, expected in zip(outputs, found[2], strict=True):
                np.testing.assert_allclose(output.log_probs, expected.log_probs, atol=1e-5)
    reasons = {output.finish_reason for outputs in together for output in outputs}
    assert reasons == {END, LENGTH, STOP}
    twice = [tuple(output.ids for output in outputs) for outputs in together if len(outputs) > 1]
    assert any(first != second for first, second in twice)


def test_greedy_equals_the_compiled_loop(engine: Engine, prompts, small_config, params):
    """Which is held against transformers in test_decoding_parity."""
    for sampling in SETTINGS[:2]:
        prompts_of_a_kind = prompts[3:24:5]
        batch = batch_prompts(prompts_of_a_kind, max_length=127)
        expected = generate(small_config, params, batch, sampling)
        found = engine.generate([Request(prompt, sampling) for prompt in prompts_of_a_kind])
        for row, (output,) in enumerate(found):
            written = np.asarray(expected.tokens)[row, : expected.lengths[row]]
            assert list(output.ids) == [token for token in written.tolist() if token != 2]
            log_probs = np.asarray(expected.log_probs)[row, : len(output.ids)]
            np.testing.assert_allclose(output.log_probs, log_probs, atol=1e-5)


def test_groups_of_prompts_are_read_together(
    small_config, small_vocabulary, params, engine, prompts
):
    requests = [Request(prompt, SETTINGS[1]) for prompt in prompts[:10]]
    with Engine(
        small_config, params, small_vocabulary, rows=5, cache_lengths=(64,), prefill_rows=(2,)
    ) as other:
        found = other.generate(requests)
    assert [o.ids for (o,) in found] == [o.ids for (o,) in engine.generate(requests)]


def test_a_row_grows_to_the_longest_sequence(engine: Engine, prompts: list[Prompt]):
    prompt = prompts[0]
    (output,) = engine.generate([Request(prompt, SamplingConfig(500, 0, temperature=2.0))])[0]
    assert output.finish_reason in (LENGTH, END)
    for seed in range(20):
        if output.finish_reason == LENGTH:
            break
        sampling = SamplingConfig(500, 0, temperature=2.0, seed=seed)
        (output,) = engine.generate([Request(prompt, sampling)])[0]
    assert len(prompt.ids) + len(output.ids) == engine.config.decoder.max_length


def test_pieces_add_up_to_the_output(engine: Engine, prompts: list[Prompt]):
    handle = engine.submit(Request(prompts[2], SETTINGS[4]))
    pieces = list(handle)
    for number, output in enumerate(handle.result()):
        own = [piece for piece in pieces if piece.output == number]
        assert sum((piece.ids for piece in own), ()) == output.ids
        assert sum((piece.log_probs for piece in own), ()) == output.log_probs
        assert "".join(piece.markup for piece in own) == output.markup
        assert [piece.finish_reason for piece in own] == [
            *[None] * (len(own) - 1), output.finish_reason
        ]  # fmt: skip
        assert len(own) > 1 and max(len(piece.ids) for piece in own) <= 4


def test_stop_strings_end_and_are_cut_off(engine: Engine, prompts: list[Prompt]):
    prompt = prompts[3]
    (free,) = engine.generate([Request(prompt, SETTINGS[0])])[0]
    stop = free.markup[8:11]
    sampling = dataclasses.replace(SETTINGS[0], stop_strings=("never written", stop))
    handle = engine.submit(Request(prompt, sampling))
    pieces = list(handle)
    (output,) = handle.result()
    assert output.markup == free.markup[: free.markup.index(stop)] and output.complete
    assert output.finish_reason == STOP
    assert output.ids == free.ids[: len(output.ids)] and len(output.ids) < len(free.ids)
    assert "".join(piece.markup for piece in pieces) == output.markup
    assert sum((piece.ids for piece in pieces), ()) == output.ids


def test_cancelling_keeps_what_is_written_and_others(engine: Engine, prompts: list[Prompt]):
    request = Request(prompts[1], SamplingConfig(110, 0, temperature=2.0))
    expected: list[tuple[Output, ...]] = engine.generate([Request(prompts[4], SETTINGS[2])])
    handle = engine.submit(dataclasses.replace(request))
    waiting = [engine.submit(request) for _ in range(6)]
    other = engine.submit(Request(prompts[4], SETTINGS[2]))
    for cancelled in (handle, *waiting):
        cancelled.cancel()
    assert other.result()[0].ids == expected[0][0].ids
    for cancelled in (handle, *waiting):
        (output,) = cancelled.result(timeout=60)
        assert output.finish_reason in (CANCELLED, END) and len(output.ids) < 110


def test_a_full_queue_says_so_and_goes_on(small_config, small_vocabulary, params, prompts):
    engine = Engine(small_config, params, small_vocabulary, rows=1, max_waiting=2)
    request = Request(prompts[0], SETTINGS[1])
    with engine, pytest.raises(BusyError, match="try again later"):
        for _ in range(50):
            engine.submit(request)
    handles = []
    with Engine(small_config, params, small_vocabulary, rows=1, max_waiting=2) as engine:
        found = engine.generate([request] * 6)
        handles.append(engine.submit(request))
    assert len({outputs[0].ids for outputs in found}) == 1
    assert handles[0].result(timeout=60)[0].finish_reason in (CANCELLED, LENGTH, END)
    with pytest.raises(ConfigError, match="closed"):
        engine.submit(request)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([], MarkupError, "empty"),
        ([0], MarkupError, "empty"),
        ([0] * 128, MarkupError, "128 tokens.* at most 127: shorten it"),
    ],
)
def test_bad_prompts_are_refused(engine: Engine, ids, error, message):
    prompt = Prompt(np.array(ids, np.int32), np.full(len(ids), -1, np.int32), ())
    with pytest.raises(error, match=message):
        engine.submit(Request(prompt))


def test_pictures_of_another_size_are_refused(engine: Engine, prompts: list[Prompt]):
    small = prompts[2]._replace(images=(np.zeros((4, 4, 3), np.uint8),))
    with pytest.raises(ImageError, match="resize it"):
        engine.submit(Request(small))


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0}, {"no_repeat_ngram_size": -1}, {"ngram_variant": "other"},
        {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0},
        {"top_p": 1.1}, {"repetition_penalty": 0.0}, {"seed": -1}, {"num_outputs": 0},
        {"stop_ids": tuple(range(9))}, {"stop_strings": ("",)}, {"num_beams": 0},
        {"beam_normalization": "other"}, {"num_beams": 2, "temperature": 1.0},
        {"num_beams": 2, "num_outputs": 3},
    ],
)  # fmt: skip
def test_settings_are_checked(values: dict):
    name = "beam" if "num_beams" in values and len(values) > 1 else next(iter(values))
    with pytest.raises(Kosmos2Error, match=name):
        SamplingConfig(**values)


def test_a_failure_reaches_every_client(small_config, small_vocabulary, prompts):
    engine = Engine(small_config, {}, small_vocabulary)  # no parameters
    handle = engine.submit(Request(prompts[0]))
    with pytest.raises(ScopeCollectionNotFound):
        handle.result()
    with pytest.raises(ScopeCollectionNotFound):
        list(handle)
    with pytest.raises(ScopeCollectionNotFound):
        engine.submit(Request(prompts[0]))
