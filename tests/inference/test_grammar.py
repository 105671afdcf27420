"""The grammar: whatever a model samples is well-formed; off, nothing changes."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding import Kosmos2Vocabulary, parse
from kosmos2_jax.inference.decoding import advance, generate, new_rows, prefill, write_one
from kosmos2_jax.inference.grammar import (
    Grammar,
    GrammarState,
    advance_grammar,
    allowed_tokens,
    make_grammar,
    state_after,
)
from kosmos2_jax.inference.prompt_batch import Prompt, PromptBatch, batch_prompts, build_prompt
from kosmos2_jax.inference.sampling import SamplingConfig, row_settings

ROWS, ROUNDS, NEW = 500, 20, 24
BOX = "<object><patch_index_0009><patch_index_0027></object>"


@pytest.fixture(scope="module")
def grammar(small_vocabulary, small_config) -> Grammar:
    return make_grammar(small_vocabulary, small_config.decoder.padded_vocab_size)


@pytest.fixture(scope="module")
def params(small_config, random_params) -> dict:
    return random_params(small_config)


def _prompts(vocabulary: Kosmos2Vocabulary) -> list[Prompt]:
    picture = np.zeros((28, 28, 3), np.uint8)
    texts = ("<grounding>An image of", "<grounding><phrase> a star</phrase>")
    prompts = [build_prompt(vocabulary, 5, [picture, text]) for text in texts]
    return [prompt._replace(images=()) for prompt in prompts]  # any vectors will do


def _states(grammar: Grammar, vocabulary: Kosmos2Vocabulary, prompts: list[Prompt]) -> GrammarState:
    found = [state_after(grammar, vocabulary, prompt.ids) for prompt in prompts]
    return jax.tree.map(lambda *values: np.concatenate(values), *found)


@pytest.fixture(scope="module")
def write(small_config, params):
    """`(prompts, settings, grammar, states)`: the new tokens of each row, one compiled loop."""

    @jax.jit
    def loop(prompts: PromptBatch, settings, grammar, states):  # noqa: ANN001, ANN202
        places = prompts.tokens.shape[1] + NEW
        logits, cache = prefill(
            small_config, params, prompts.tokens, prompts.lengths, cache_length=places
        )
        history = jnp.pad(prompts.tokens, ((0, 0), (0, NEW)), constant_values=1)
        state = new_rows(small_config, history, prompts.lengths, settings, states, cache)
        state = jax.lax.while_loop(
            lambda state: ~jnp.all(state.finished),
            lambda state: write_one(small_config, params, state, grammar),
            advance(small_config, state, logits, grammar),
        )
        return state.history, state.lengths

    def run(prompts: PromptBatch, *rest) -> list[list[int]]:  # noqa: ANN002
        history, lengths = jax.device_get(loop(prompts, *rest))
        starts = prompts.lengths
        return [row[a:b].tolist() for row, a, b in zip(history, starts, lengths, strict=True)]

    return run


def test_10000_sampled_outputs_are_well_formed(grammar, small_vocabulary, write):
    prompts = _prompts(small_vocabulary)
    many = [prompts[row % 2] for row in range(ROWS)]
    batch, states = (
        batch_prompts(many, max_length=100),
        _states(grammar, small_vocabulary, many),
    )
    configs = [
        SamplingConfig(
            1 + row % NEW, row % 3, temperature=1 + row % 2, top_k=row % 5, grammar=True
        )
        for row in range(ROWS)
    ]  # fmt: skip
    texts = ("<grounding>An image of", "<grounding><phrase> a star</phrase>")
    boxes = outputs = forced = 0
    for round_number in range(ROUNDS):
        seeds = np.arange(ROWS, dtype=np.uint32) + round_number * ROWS
        settings = row_settings(configs)._replace(seed=seeds)
        for row, ids in enumerate(write(batch, settings, grammar, states)):
            outputs += 1
            # A box takes four tokens; whoever allows fewer cannot have it whole.
            if row % 2 and configs[row].max_new_tokens < 4:
                continue
            written = small_vocabulary.decode([small_vocabulary.bos_id, *ids])
            result = parse(texts[row % 2] + written, small_vocabulary.grid_size)
            assert all(p.startswith("Nothing is grounded") for p in result.problems), written
            corners = len(re.findall("patch_index", written))
            assert sum(len(span.boxes) for span in result.spans) == corners // 2
            for span in result.spans:
                assert span.text == result.text[span.start : span.end]
                assert all(b.x1 < b.x2 and b.y1 < b.y2 for b in span.boxes)
            boxes += corners // 2
            forced += row % 2 and result.spans[0].text == "a star"
    assert outputs == 10_000 and boxes > 5_000 and forced > 4_000


def test_off_it_changes_nothing(grammar, small_vocabulary, small_config, params, write):
    """Also for a row beside one that has it on."""
    prompts = _prompts(small_vocabulary)
    sampling = SamplingConfig(NEW, 3, temperature=1.5)
    batch = batch_prompts(prompts, max_length=100)
    plain = generate(small_config, params, batch, sampling)
    expected = [np.asarray(plain.tokens)[row, : plain.lengths[row]].tolist() for row in range(2)]
    settings = row_settings([sampling] * 2, [0, 1])
    states = _states(grammar, small_vocabulary, prompts)
    assert write(batch, settings, grammar, states) == expected
    half = settings._replace(grammar=np.array([True, False]))
    found = write(batch, half, grammar, states)
    assert found[1] == expected[1] and found[0] != expected[0]


def _allowed(grammar, vocabulary, markup: str, left: int = 99) -> set[str]:  # noqa: ANN001
    ids = np.array([0, *vocabulary.encode_markup(markup)])
    state = state_after(grammar, vocabulary, ids)
    mask = np.asarray(allowed_tokens(grammar, state, jnp.array([left])))[0]
    return {vocabulary.tokens[token] for token in np.flatnonzero(mask)}


def test_what_may_follow(grammar, small_vocabulary: Kosmos2Vocabulary):
    v, close = small_vocabulary, "</delimiter_of_multi_objects/>"
    text = _allowed(grammar, v, "a star")
    assert {"</s>", "<phrase>", "▁", "</line>"} <= text
    assert not {"<object>", "</phrase>", "<patch_index_0000>", "<image>", "<pad>"} & text
    assert "</phrase>" not in _allowed(grammar, v, "<phrase>")
    inside = _allowed(grammar, v, "<phrase> a star")
    assert "</phrase>" in inside and not {"</s>", "<phrase>", "<object>", "<unk>"} & inside
    assert _allowed(grammar, v, "<phrase> a star</phrase>") == {"<object>"}
    cells = {f"<patch_index_{cell:04d}>" for cell in range(64)}
    assert _allowed(grammar, v, "<phrase> a</phrase><object>") == cells
    second = _allowed(grammar, v, "<phrase> a</phrase><object><patch_index_0044>")
    rows_and_columns = [(cell // 8, cell % 8) for cell in range(64)]
    assert second == {
        f"<patch_index_{row * 8 + column:04d}>"
        for row, column in rows_and_columns
        if row >= 5 and column >= 4
    }
    whole = f"<phrase> a</phrase>{BOX}"
    assert _allowed(grammar, v, whole.removesuffix("</object>")) == {"</object>", close}
    assert _allowed(grammar, v, whole.replace("</object>", close)) == cells
    assert _allowed(grammar, v, f"<phrase> a{v.tokens[v.end_image_id]} b") == text


def test_what_is_open_is_closed_in_time(grammar, small_vocabulary: Kosmos2Vocabulary):
    v = small_vocabulary
    assert "<phrase>" in _allowed(grammar, v, "a", left=7)
    assert "<phrase>" not in _allowed(grammar, v, "a", left=6)
    assert _allowed(grammar, v, "<phrase> a", left=5) == {"</phrase>"}
    assert _allowed(grammar, v, f"<phrase> a</phrase>{BOX}"[:-9], left=3) == {"</object>"}
    assert len(_allowed(grammar, v, f"<phrase> a</phrase>{BOX}"[:-9], left=4)) == 2
    # Too few for anything: the next token at least is right.
    assert _allowed(grammar, v, "<phrase> a</phrase>", left=1) == {"<object>"}


def test_states_follow_tokens_as_they_follow_prompts(grammar, small_vocabulary):
    ids = small_vocabulary.encode_markup(f"a<phrase> red star</phrase>{BOX} left</phrase>")
    state = state_after(grammar, small_vocabulary, np.array([0]))
    for count, token in enumerate(ids, start=1):
        state = advance_grammar(grammar, state, np.array([token]))
        expected = state_after(grammar, small_vocabulary, np.array([0, *ids[:count]]))
        assert [int(x[0]) for x in state] == [int(x[0]) for x in expected]


def test_a_model_without_locations_has_none(small_vocabulary):
    with pytest.raises(ConfigError, match="no location tokens"):
        make_grammar(Kosmos2Vocabulary(small_vocabulary.model_file, grid_size=0), 100)
