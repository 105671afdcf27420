"""Adapters in peft's files: the real peft loads ours onto transformers' model, and we read its."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax.cli import main
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.interop import hugging_face
from kosmos2_jax.interop.convert import load
from kosmos2_jax.interop.layout import flatten, nest, stack_layers
from kosmos2_jax.interop.peft import WEIGHTS, add_adapter, write_adapter
from kosmos2_jax.models.kosmos2 import Kosmos2
from kosmos2_jax.models.lora import LoraConfig, is_adapter, merge_adapters, with_adapters

LORA = LoraConfig(rank=3, alpha=5.0, targets=".*", dropout=0.1)
TOLERANCE = 1e-4  # absolute, of logits; never to be relaxed


@pytest.fixture(scope="module")
def adapted(tiny_reference) -> dict:
    """The reference's parameters with random adapters of every linear layer."""
    rng = np.random.default_rng(0)
    flat = dict(flatten(tiny_reference.params))
    for path, kernel in list(flat.items()):
        if path.endswith("/kernel") and kernel.ndim == 2:
            (inputs, outputs), folder = kernel.shape, path.removesuffix("kernel")
            a = rng.normal(size=(inputs, LORA.rank), scale=0.3 * inputs**-0.5)
            b = rng.normal(size=(LORA.rank, outputs))
            flat[f"{folder}lora_a"], flat[f"{folder}lora_b"] = np.float32(a), np.float32(b)
    return nest(flat)


@pytest.fixture(scope="module")
def folder(adapted, tiny_reference, tmp_path_factory) -> Path:
    """The adapters alone."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    write_adapter(folder, adapted, tiny_reference.config, LORA)
    return folder


@pytest.fixture(scope="module")
def peft_model(folder, make_reference, tiny_reference):
    """transformers' model with our adapters, as peft loads them."""
    peft = pytest.importorskip("peft")
    # Of its own: peft changes the model it is given.
    base = make_reference.__wrapped__(tiny_reference.config).model
    return peft.PeftModel.from_pretrained(base, folder).eval()


@pytest.fixture(scope="module")
def batch():
    """One row with one picture of five soft tokens: tokens, slots, picture."""
    rng = np.random.default_rng(1)
    slots = np.full((1, 12), -1, np.int32)
    slots[:, 2:7] = np.arange(5)
    tokens = rng.integers(12, 100, (1, 12)).astype(np.int32)
    return tokens, slots, rng.normal(size=(1, 1, 28, 28, 3)).astype(np.float32)


def our_logits(config, params, batch):
    tokens, slots, images = map(jnp.asarray, batch)
    positions = jnp.arange(tokens.shape[1])[None]
    apply = jax.jit(with_adapters(Kosmos2(config).apply, LORA))
    return apply({"params": params}, tokens, positions, jnp.ones_like(tokens), images, slots)


def their_logits(model, batch):
    torch = pytest.importorskip("torch")
    tokens, slots, images = batch
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.ones(tokens.shape, dtype=torch.long),
            pixel_values=torch.tensor(images[:, 0].transpose(0, 3, 1, 2)),
            image_embeds_position_mask=torch.tensor(slots >= 0),
        ).logits.numpy()


def test_peft_gives_the_same_logits(adapted, peft_model, tiny_reference, batch):
    ours = our_logits(tiny_reference.config, adapted, batch)
    np.testing.assert_allclose(ours, their_logits(peft_model, batch), rtol=0, atol=TOLERANCE)
    plain = their_logits(tiny_reference.model, batch)
    assert np.abs(ours - plain).max() > 1.0, "the adapters do too little to tell anything"


def test_stacked_layers_give_the_same_files(adapted, folder, tiny_reference, tmp_path):
    config = tiny_reference.config.replace(scan_layers=True)
    write_adapter(tmp_path / "stacked", stack_layers(adapted, config), config, LORA)
    for file in folder.iterdir():
        assert (tmp_path / "stacked" / file.name).read_bytes() == file.read_bytes()


def test_what_peft_saves_is_read_and_merged_to_the_same_kernels(
    adapted, peft_model, tiny_reference, tmp_path
):
    peft_model.save_pretrained(tmp_path)
    found = flatten(add_adapter(tiny_reference.params, tiny_reference.config, tmp_path))
    expected = flatten(merge_adapters(adapted, LORA.scale))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)
    assert not any(map(is_adapter, found))


def test_convert_merges_an_adapter(adapted, folder, tiny_reference, tmp_path, capsys):
    config = tiny_reference.config.replace(grid_size=32)  # of a folder without tokenizer
    hugging_face.write_folder(tmp_path / "base", tiny_reference.params, config, None)
    words = ["convert", str(tmp_path / "base"), str(tmp_path / "merged"), "--to", "orbax"]
    assert main([*words, "--adapter", str(folder)]) == 0
    found, expected = load(tmp_path / "merged").params, merge_adapters(adapted, LORA.scale)
    for path, value in flatten(expected).items():
        np.testing.assert_array_equal(flatten(found)[path], value)


def changed(folder: Path, copy: Path, **settings) -> Path:
    copy.mkdir()
    description = json.loads((folder / "adapter_config.json").read_text()) | settings
    (copy / "adapter_config.json").write_text(json.dumps(description))
    (copy / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    return copy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora True, and only plain LoRA.*merge_and_unload"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"r": 4}, r"does not fit.*lora_a has shape \(\d+, 3\) instead of \(\d+, 4\)"),
        ({"r": "many"}, "is damaged"),
    ],
)
def test_other_adapters_are_refused(folder, tiny_reference, tmp_path, settings, words):
    copy = changed(folder, tmp_path / "copy", **settings)
    with pytest.raises(CheckpointError, match=words):
        add_adapter(tiny_reference.params, tiny_reference.config, copy)


def test_damaged_files_and_those_of_another_model_are_named(folder, tiny_reference, tmp_path):
    config, params = tiny_reference.config, tiny_reference.params
    copy = changed(folder, tmp_path / "copy")
    content = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(content[:-9])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        add_adapter(params, config, copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is missing"):
        add_adapter(params, config, copy)
    shallow = config.replace(decoder={"num_layers": 1})
    kept = {p: v for p, v in flatten(params).items() if "decoder/layers_" not in p}
    kept |= {p: v for p, v in flatten(params).items() if "decoder/layers_0/" in p}
    with pytest.raises(CheckpointError, match=r"no layer for .*layers\.1\."):
        add_adapter(nest(kept), shallow, folder)
