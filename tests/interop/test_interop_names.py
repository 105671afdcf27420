"""The tables of names and shapes against transformers itself and the spec."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos2_jax.config import Kosmos2Config, preset
from kosmos2_jax.interop import hf_config
from kosmos2_jax.interop.layout import flatten, nest, stack_layers
from kosmos2_jax.interop.names import FAIRSEQ, HUGGING_FACE, Entry, num_parameters, sope_scale
from kosmos2_jax.models.kosmos2 import initial_params


def _meta_shapes(config: Kosmos2Config) -> dict[str, tuple[int, ...]]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    values = hf_config.config_json(config)
    with torch.device("meta"):
        model = transformers.Kosmos2ForConditionalGeneration(
            transformers.Kosmos2Config(
                text_config=values["text_config"],
                vision_config=values["vision_config"],
                latent_query_num=values["latent_query_num"],
            )
        )
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_full_size_names_and_shapes_equal_transformers():
    shapes = HUGGING_FACE.shapes(Kosmos2Config())
    assert shapes == _meta_shapes(Kosmos2Config())
    assert len(shapes) == 886
    starts = [name.split(".")[0] for name in shapes]
    assert starts.count("text_model") == 484
    assert starts.count("vision_model") == 391
    assert starts.count("image_to_text_projection") == 11


def test_tiny_names_and_shapes_equal_transformers():
    assert HUGGING_FACE.shapes(preset("tiny")) == _meta_shapes(preset("tiny"))


def test_parameter_counts_of_the_spec():
    assert num_parameters(Kosmos2Config()) == 1_664_485_376
    assert num_parameters(preset("kosmos1")) == 1_662_375_936


# Spec section 2.2: official name to Hugging Face name.
RENAMED = {
    "gpt_model.decoder.output_projection.weight": "text_model.lm_head.weight",
    "img_model.visual.class_embedding": "vision_model.model.embeddings.class_embedding",
    "img_model.visual.positional_embedding":
        "vision_model.model.embeddings.position_embedding.weight",
    "img_model.visual.conv1.weight": "vision_model.model.embeddings.patch_embedding.weight",
}  # fmt: skip
PREFIXES = (
    ("gpt_model.decoder.", "text_model.model."),
    ("img_model.visual.transformer.resblocks.", "vision_model.model.encoder.layers."),
    ("img_model.visual.ln_pre.", "vision_model.model.pre_layrnorm."),
    ("img_model.visual.ln_post.", "vision_model.model.post_layernorm."),
    ("img_connector.", "image_to_text_projection."),
)
INNER = ((".ts_attn.", ".self_attn."), (".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."),
         (".mlp.c_fc.", ".mlp.fc1."), (".mlp.c_proj.", ".mlp.fc2."))  # fmt: skip


def _official_to_hugging_face(name: str) -> str:
    if name in RENAMED:
        return RENAMED[name]
    for old, new in PREFIXES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    for old, new in INNER:
        name = name.replace(old, new)
    return name


def test_fairseq_names_follow_the_renaming_of_the_spec():
    shapes = FAIRSEQ.shapes(Kosmos2Config())
    assert len(shapes) == 888
    assert shapes.pop("gpt_model.decoder.embed_positions._float_tensor") == (1,)
    assert shapes.pop("gpt_model.decoder.self_attn_sope.scale") == (32,)
    renamed = {_official_to_hugging_face(name): shape for name, shape in shapes.items()}
    assert renamed == HUGGING_FACE.shapes(Kosmos2Config())


def test_tables_agree_on_our_side():
    ours = {entry.ours: entry.shape for entry in HUGGING_FACE.entries(Kosmos2Config())}
    assert ours == {entry.ours: entry.shape for entry in FAIRSEQ.entries(Kosmos2Config())}
    assert len(ours) == 885


@pytest.mark.parametrize("scan_layers", [False, True])
def test_tables_name_the_parameters_of_our_model(scan_layers: bool):
    config = preset("tiny").replace(scan_layers=scan_layers)
    boxed = jax.eval_shape(lambda: initial_params(config, jax.random.key(0)))
    entries = HUGGING_FACE.entries(config)
    tree = nest({entry.ours: np.broadcast_to(np.float32(0), entry.shape) for entry in entries})
    if scan_layers:
        tree = stack_layers(tree, config)
    found = {path: leaf.shape for path, leaf in flatten(nn.meta.unbox(boxed)).items()}
    assert found == {path: leaf.shape for path, leaf in flatten(tree).items()}


def test_sope_scale_has_the_bits_of_torch():
    torch = pytest.importorskip("torch")
    for config, head in ((Kosmos2Config(), 64), (preset("tiny"), 8)):
        expected = (torch.arange(0, head, 2) + 0.4 * head) / (1.4 * head)
        np.testing.assert_array_equal(sope_scale(config), expected.numpy())
    np.testing.assert_allclose(
        sope_scale(Kosmos2Config()), [(2 * k + 25.6) / 89.6 for k in range(32)], rtol=1e-6
    )


def test_patch_kernel_turns_from_oihw_to_hwio():
    entry = next(e for e in HUGGING_FACE.entries(preset("tiny")) if e.transform == "conv")
    foreign = np.arange(24 * 3 * 14 * 14, dtype=np.float32).reshape(24, 3, 14, 14)
    assert entry.to_ours(foreign)[5, 7, 2, 11] == foreign[11, 2, 5, 7]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([("none", 1), ("none", 2), ("transpose", 2), ("conv", 4)]),
    st.data(),
)
def test_transforms_are_inverse(kind: tuple[str, int], data: st.DataObject):
    transform, rank = kind
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank)))
    entry = Entry("a", "b", transform, shape)
    ours = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    foreign = entry.to_foreign(ours)
    assert foreign.shape == entry.foreign_shape
    assert foreign.flags.c_contiguous
    np.testing.assert_array_equal(entry.to_ours(foreign), ours)
