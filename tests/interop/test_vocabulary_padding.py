"""A padded vocabulary changes no result, learns nothing and is in no file."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.inference.model import Kosmos2Model
from kosmos2_jax.inference.prompt_batch import PromptBatch
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.interop import fairseq, hugging_face, orbax_io
from kosmos2_jax.interop.convert import load
from kosmos2_jax.interop.layout import flatten, pad_vocabulary
from kosmos2_jax.training.optimizer import OptimizerConfig, make_optimizer

MULTIPLE = 128


@pytest.fixture(scope="module")
def models(small):
    """The same model without and with padding."""
    plain = small.replace(decoder={"dropout": 0.0})
    padded = plain.replace(decoder={"vocab_multiple": MULTIPLE})
    assert padded.decoder.padded_vocab_size > plain.decoder.vocab_size
    return Kosmos2Model(plain), Kosmos2Model(padded)


@pytest.fixture(scope="module")
def trees(models):
    plain, padded = models
    return plain.init(jax.random.key(1)), padded.init(jax.random.key(1))


@pytest.fixture(scope="module")
def batch(models):
    rng = np.random.default_rng(0)
    size, rows, length = models[0].config.decoder.vocab_size, 2, 10
    batch = {
        "tokens": rng.integers(3, size, (rows, length), np.int32),
        "targets": rng.integers(3, size, (rows, length), np.int32),
        "loss_weights": np.ones((rows, length), np.float32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segment_ids": np.ones((rows, length), np.int32),
    }
    return jax.tree.map(jnp.asarray, batch)


def table_of(params):
    return np.asarray(params["decoder"]["token_embedding"])


def test_fresh_values_are_the_same_and_zeros(models, trees):
    size = models[0].config.decoder.vocab_size
    assert len(table_of(trees[1])) % MULTIPLE == 0
    np.testing.assert_array_equal(table_of(trees[1])[:size], table_of(trees[0]))
    assert not table_of(trees[1])[size:].any()


@pytest.mark.parametrize("chunk", [0, 4])
def test_loss_and_gradient_are_the_same_and_padding_learns_nothing(models, trees, batch, chunk):
    def of(model, params):
        model = Kosmos2Model(model.config, loss_chunk=chunk)
        run = jax.jit(jax.value_and_grad(lambda p: model.loss_fn(p, batch), has_aux=True))
        return run(params)

    (loss, sums), grads = of(models[0], trees[0])
    (found, found_sums), found_grads = of(models[1], trees[1])
    size = models[0].config.decoder.vocab_size
    assert float(found) == pytest.approx(float(loss), rel=1e-6)
    assert float(found_sums["correct"]) == float(sums["correct"])
    assert not table_of(found_grads)[size:].any()
    found_grads["decoder"]["token_embedding"] = found_grads["decoder"]["token_embedding"][:size]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found_grads, grads
    )


def test_padding_stays_zero_under_the_optimiser(models, trees, batch):
    params = trees[1]
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, total_steps=9))
    state = optimizer.init(params)
    grad = jax.grad(lambda p: models[1].loss_fn(p, batch)[0])
    for _ in range(2):
        updates, state = optimizer.update(grad(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    size = models[0].config.decoder.vocab_size
    assert not table_of(params)[size:].any()
    assert np.any(table_of(params)[:size] != table_of(trees[1])[:size])


def test_padding_is_never_written_even_where_its_scores_would_be_best(models, trees):
    """All tokens score below zero here, as a row of zeros would."""
    plain, padded = models
    size = plain.config.decoder.vocab_size
    spoilt = [
        {**tree, "decoder": {**tree["decoder"], "final_norm": {
            "scale": jnp.zeros_like(tree["decoder"]["final_norm"]["scale"]),
            "bias": -jnp.abs(tree["decoder"]["token_embedding"][:size]).sum(0),
        }}}
        for tree in trees
    ]  # fmt: skip
    for tree in spoilt:
        tree["decoder"]["token_embedding"] = jnp.abs(tree["decoder"]["token_embedding"])
    tokens = np.array([[0, 5, 6]], np.int32)
    prompts = PromptBatch(tokens, np.array([3], np.int32), np.full_like(tokens, -1), None)
    generation = SamplingConfig(max_new_tokens=4)
    ours = plain.generate(spoilt[0], prompts, generation)
    theirs = padded.generate(spoilt[1], prompts, generation)
    np.testing.assert_array_equal(theirs.tokens, ours.tokens)
    np.testing.assert_allclose(theirs.log_probs, ours.log_probs, rtol=1e-5)
    assert int(theirs.tokens.max()) < size


@pytest.mark.parametrize(
    "write", [orbax_io.save_folder, hugging_face.write_folder, fairseq.write_file]
)
def test_no_file_has_it(write, models, trees, small_vocabulary, tmp_path):
    plain, padded = models
    write(tmp_path / "model", trees[1], padded.config, small_vocabulary)
    checkpoint = load(tmp_path / "model")
    assert checkpoint.config.decoder.vocab_multiple == 1
    found = flatten(checkpoint.params)
    for path, leaf in flatten(trees[0]).items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    again = pad_vocabulary(checkpoint.params, padded.config)
    np.testing.assert_array_equal(table_of(again), table_of(trees[1]))
