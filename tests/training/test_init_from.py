"""Runs that begin with a checkpoint of any kind, compared with the models that wrote them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos2_jax import train as trainer
from kosmos2_jax.config import Kosmos2Config, preset
from kosmos2_jax.data.text_model import train_sentencepiece
from kosmos2_jax.errors import CheckpointError, ConfigError
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.interop.convert import convert
from kosmos2_jax.interop.layout import flatten, stack_layers
from kosmos2_jax.interop.orbax_io import save_folder
from kosmos2_jax.models.kosmos2 import initial_params
from kosmos2_jax.models.vision_transformer import VisionTransformer
from kosmos2_jax.partitioning import make_mesh, param_shardings
from kosmos2_jax.training.init_from import InitReport, init_params, open_weights, resize_positions
from kosmos2_jax.training.optimizer import make_optimizer
from kosmos2_jax.training.run_config import InitFromConfig, RunConfig
from kosmos2_jax.training.state import state_shardings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOWER_ALONE = "(resampler|decoder)/.*"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Kosmos2Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    sentences = [f"the {word} star is small" for word in ("red", "blue", "green")] * 9
    train_sentencepiece(sentences, folder / "sentencepiece.bpe.model", 40)
    return Kosmos2Vocabulary(folder / "sentencepiece.bpe.model", grid_size=4)


@pytest.fixture(scope="module")
def config(vocabulary: Kosmos2Vocabulary) -> Kosmos2Config:
    return preset("tiny").replace(decoder={"vocab_size": vocabulary.vocab_size})


@pytest.fixture(scope="module")
def kosmos2(config: Kosmos2Config, make_reference: Callable, tmp_path_factory) -> tuple[Any, Path]:
    """transformers' model with its folder."""
    reference = make_reference(config)
    folder = tmp_path_factory.mktemp("kosmos2")
    reference.model.save_pretrained(folder)
    return reference, folder


@pytest.fixture(scope="module")
def clip(config: Kosmos2Config, tmp_path_factory) -> tuple[Any, Path]:
    """transformers' CLIP, random, whose tower has the size of `config`'s, with its folder."""
    vision = config.vision
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.mlp_dim,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_heads,
    )
    text = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        vocab_size=9, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={
                **sizes,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
            },
            text_config=text,
            projection_dim=8,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return model, folder


def begin(
    config: Kosmos2Config, vocabulary: Kosmos2Vocabulary, path: Path, **settings: Any
) -> tuple[dict[str, Any], InitReport, dict[str, Any], dict[str, Any]]:
    """Parameters and report, the parameters before, and their shardings on eight devices."""
    boxed = jax.eval_shape(lambda: initial_params(config, jax.random.key(0)))
    shardings = param_shardings(boxed, make_mesh({"fsdp": 4, "tensor": 2}))
    rng = np.random.default_rng(1)
    before = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), nn.meta.unbox(boxed)
    )
    params, report = init_params(
        jax.device_put(before, shardings),
        config,
        vocabulary,
        InitFromConfig(path=str(path), **settings),
    )
    return params, report, before, shardings


def assert_equal(found: Any, wanted: Any) -> None:
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path], err_msg=path)


@pytest.mark.parametrize("kind", ["hf", "fairseq", "orbax"])
@pytest.mark.parametrize("scan", [False, True])
def test_a_whole_model_of_every_format(kosmos2, config, vocabulary, tmp_path, kind, scan):
    reference, path = kosmos2
    if kind != "hf":
        path = tmp_path / ("kosmos-2.pt" if kind == "fairseq" else "ours")
        tokenizer = vocabulary.model_file if kind == "fairseq" else None
        convert(kosmos2[1], path, kind, tokenizer=tokenizer)
    params, report, _, shardings = begin(config.replace(scan_layers=scan), vocabulary, path)
    wanted = stack_layers(reference.params, config) if scan else reference.params
    assert_equal(params, wanted)
    assert len(report.matched) == len(flatten(reference.params))
    assert not report.resized and not report.initial and not report.notes
    placed = jax.tree.map(lambda leaf: leaf.sharding, params)
    assert placed == shardings


def states_of(model: Any, pixels: np.ndarray) -> np.ndarray:
    """What Kosmos-2 takes of a CLIP tower: all states, post-normed, of length 1 (spec 1.1)."""
    tower = model.vision_model
    with torch.no_grad():
        states = tower(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).last_hidden_state
        states = tower.post_layernorm(states)
        return torch.nn.functional.normalize(states, dim=-1).numpy()


def openai_state(model: Any) -> dict[str, Any]:
    """The weights under OpenAI's names, attention's three projections joined in one."""
    state = {}
    for name, tensor in model.vision_model.state_dict().items():
        name = name.replace("encoder.layers.", "transformer.resblocks.")
        for old, new in (
            ("embeddings.class_embedding", "class_embedding"),
            ("embeddings.patch_embedding", "conv1"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("self_attn", "attn"),
        ):
            name = name.replace(old, new)
        state[f"visual.{name}"] = tensor
    for name in [name for name in state if ".attn.q_proj." in name]:
        parts = [state.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        state[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    state["visual.proj"] = torch.zeros(4, 4)
    state["logit_scale"] = torch.zeros([])
    return state


@pytest.mark.parametrize("kind", ["Hugging Face", "OpenAI, torch", "OpenAI, safetensors"])
def test_clips_tower_computes_what_clip_computes(clip, config, vocabulary, tmp_path, kind):
    model, path = clip
    if kind == "OpenAI, torch":
        path = tmp_path / "clip.pt"
        torch.save(openai_state(model), path)
    elif kind == "OpenAI, safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "clip.safetensors"
        save_file(openai_state(model), path)
    params, report, before, _ = begin(config, vocabulary, path, allow_missing=TOWER_ALONE)
    size = config.vision.image_size
    pixels = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    tower = {"params": jax.device_get(params)["vision"]}
    found = VisionTransformer(config.vision).apply(tower, jnp.asarray(pixels))
    np.testing.assert_allclose(found, states_of(model, pixels), atol=2e-6)
    assert len(report.matched) == len(flatten(params["vision"]))
    assert_equal(params["decoder"], before["decoder"])
    assert {path.split("/")[0] for path in report.initial} == {"resampler", "decoder"}
    assert "logit_scale" in report.skipped
    assert kind.split(",")[0] in report.source and "vision 39" in str(report)


def test_position_embeddings_are_resized_as_open_clip_does(clip, config, vocabulary):
    model, path = clip
    larger = config.replace(vision={"image_size": 2 * config.vision.image_size})
    params, report, _, _ = begin(larger, vocabulary, path, allow_missing=TOWER_ALONE)
    table = model.vision_model.embeddings.position_embedding.weight.detach().numpy()
    found = np.asarray(params["vision"]["position_embedding"])
    np.testing.assert_allclose(found, torch_resized(table, 17), atol=1e-5)
    assert "4 to 16 patches" in report.resized["vision/position_embedding"]


@pytest.mark.parametrize(("old", "new"), [(7, 16), (16, 7), (16, 16)])
def test_resizing_equals_torchs(old, new):
    table = np.random.default_rng(0).normal(size=(1 + old * old, 5)).astype(np.float32)
    found = resize_positions(table, 1 + new * new)
    np.testing.assert_allclose(found, torch_resized(table, 1 + new * new), atol=1e-5)


def torch_resized(table: np.ndarray, tokens: int) -> np.ndarray:
    """open_clip's `resize_pos_embed`."""
    old, new = (round((n - 1) ** 0.5) for n in (len(table), tokens))
    square = torch.from_numpy(table[1:].copy()).reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = torch.nn.functional.interpolate(
        square, size=(new, new), mode="bicubic", antialias=True, align_corners=False
    )
    patches = square.permute(0, 2, 3, 1).reshape(new * new, -1).numpy()
    return np.concatenate([table[:1], patches])


def test_new_tokens_keep_their_initial_rows(kosmos2, config, vocabulary, tmp_path):
    """As from Kosmos-1's vocabulary to Kosmos-2's: the tags and cells at the end are new."""
    small = Kosmos2Vocabulary(vocabulary.model_file, grid_size=0)
    reference, _ = kosmos2
    rows = small.vocab_size
    table = reference.params["decoder"]["token_embedding"]
    decoder = {**reference.params["decoder"], "token_embedding": table[:rows]}
    saved = config.replace(grid_size=0, decoder={"vocab_size": rows})
    save_folder(tmp_path / "kosmos1", {**reference.params, "decoder": decoder}, saved, small)
    params, report, before, _ = begin(config, vocabulary, tmp_path / "kosmos1")
    found = np.asarray(params["decoder"]["token_embedding"])
    np.testing.assert_array_equal(found[:rows], table[:rows])
    np.testing.assert_array_equal(found[rows:], before["decoder"]["token_embedding"][rows:])
    assert f"the other {len(found) - rows} keep" in report.resized["decoder/token_embedding"]


def test_tokens_of_another_tokenizer_keep_their_rows(kosmos2, config, vocabulary, tmp_path):
    reference, _ = kosmos2
    train_sentencepiece(["the red cube is here and there"] * 9, tmp_path / "other.model", 30)
    other = Kosmos2Vocabulary(tmp_path / "other.model", grid_size=2)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(other.vocab_size, config.decoder.hidden_size)).astype(np.float32)
    decoder = {**reference.params["decoder"], "token_embedding": table}
    saved = config.replace(grid_size=2, decoder={"vocab_size": other.vocab_size})
    save_folder(tmp_path / "other", {**reference.params, "decoder": decoder}, saved, other)
    params, _, before, _ = begin(config, vocabulary, tmp_path / "other")
    found = np.asarray(params["decoder"]["token_embedding"])
    initial = before["decoder"]["token_embedding"]
    shared = 0
    for i, token in enumerate(vocabulary.tokens):
        known = token in other.tokens and not vocabulary.is_location(i)
        shared += known
        wanted = table[other.tokens.index(token)] if known else initial[i]
        np.testing.assert_array_equal(found[i], wanted, err_msg=token)
    assert 20 < shared < len(found)


def test_assignments_say_where_values_are_found(kosmos2, config, vocabulary):
    """The first decoder layer begins as the last one, one part afresh; layers are scanned."""
    reference, path = kosmos2
    params, report, before, _ = begin(
        config.replace(scan_layers=True),
        vocabulary,
        path,
        assignments=(
            ("decoder/layers_0/(.*)", r"decoder/layers_2/\1"),
            ("resampler/attention/.*", ""),
            ("decoder/layers_1/mlp/up/bias", ""),
        ),
    )
    up = params["decoder"]["layers"]["mlp"]["up"]
    theirs = reference.params["decoder"]
    np.testing.assert_array_equal(up["kernel"][0], theirs["layers_2"]["mlp"]["up"]["kernel"])
    np.testing.assert_array_equal(up["kernel"][1], theirs["layers_1"]["mlp"]["up"]["kernel"])
    initial = before["decoder"]["layers"]["mlp"]["up"]["bias"]
    np.testing.assert_array_equal(up["bias"][1], initial[1])
    np.testing.assert_array_equal(up["bias"][2], theirs["layers_2"]["mlp"]["up"]["bias"])
    assert_equal(params["resampler"]["attention"], before["resampler"]["attention"])
    assert "decoder/layers_1/mlp/up/bias" in report.initial
    assert any(name.startswith("decoder/layers_0/") for name in report.skipped)


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({}, {"path": "nowhere"}, "nowhere does not exist"),
        ({}, {"assignments": (("vision/lyers_0/.*", ""),)}, "lyers_0.*matches no parameter"),
        (
            {"decoder": {"num_layers": 4}},
            {},
            r"lacks decoder/layers_3/.* \d+ more: set init",
        ),
        ({"decoder": {"num_heads": 2}}, {}, "4 heads where model.decoder.num_heads is 2"),
        (
            {"resampler": {"num_latents": 6}},
            {},
            r"\(5, 32\), but resampler/latents needs \(6, 32\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(kosmos2, config, vocabulary, changes, settings, words):
    path = settings.pop("path", kosmos2[1])
    with pytest.raises(CheckpointError, match=words) as error:
        begin(config.replace(**changes), vocabulary, path, **settings)
    assert "\n" not in str(error.value)


def test_a_clip_that_computes_otherwise_is_refused(clip, config, vocabulary, tmp_path):
    model, _ = clip
    model.config.vision_config.hidden_act = "gelu"
    model.save_pretrained(tmp_path)
    model.config.vision_config.hidden_act = "quick_gelu"
    with pytest.raises(CheckpointError, match="hidden_act is 'gelu', this model's 'quick_gelu'"):
        begin(config, vocabulary, tmp_path, allow_missing=TOWER_ALONE)


def test_other_positions_are_told(kosmos2, config, vocabulary):
    xpos = config.replace(decoder={"position": "xpos"})
    _, report, _, _ = begin(xpos, vocabulary, kosmos2[1])
    assert "sinusoidal positions, the model xpos" in str(report)


def test_a_bad_pattern_is_refused():
    with pytest.raises(ConfigError, match="no regular expression"):
        InitFromConfig(path="a", allow_missing="(")


def test_a_run_begins_with_it_and_says_so(kosmos2, config, vocabulary, capsys):
    reference, path = kosmos2
    config = config.replace(scan_layers=True)  # compiles faster
    run = RunConfig(model=config, init_from=InitFromConfig(path=str(path)))
    optimizer = make_optimizer(run.optimizer)
    shardings = state_shardings(run, optimizer, make_mesh(run.mesh))
    state = trainer.first_state(run, optimizer, shardings, vocabulary)
    assert_equal(state.params, stack_layers(reference.params, config))
    assert "begins with" in capsys.readouterr().err


def test_a_folder_of_ours_may_lie_in_a_bucket(config, vocabulary, kosmos2, bucket):
    reference, _ = kosmos2
    place = f"{bucket}/model"
    save_folder(place, reference.params, config, vocabulary)
    found = open_weights(place, config)
    assert found.kind == "orbax checkpoint"
    for path, value in flatten(reference.params).items():
        np.testing.assert_array_equal(found.params[path], value)
