"""Checkpoints that are empty, cut short, foreign or in the way: one clear error each."""

from __future__ import annotations

import argparse
import decimal
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kosmos2_jax.config import Kosmos2Config, preset
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.interop import fairseq, hugging_face, orbax_io
from kosmos2_jax.interop.convert import convert, detect_format, load
from kosmos2_jax.interop.layout import flatten
from kosmos2_jax.interop.names import HUGGING_FACE

torch = pytest.importorskip("torch")

# Orbax leaves threads of its own behind when a read fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def refused(match: str, action: Callable, *args: object, **kwargs: object) -> str:
    """Runs `action`, which must raise one clear error, and returns its message."""
    with pytest.raises(CheckpointError, match=match) as caught:
        action(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def copy(hf_folder: Path, tmp_path: Path) -> Path:
    """A Hugging Face folder that a test may damage."""
    return Path(shutil.copytree(hf_folder, tmp_path / "copy"))


def edit_weights(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


# What is it? ---------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path):
    refused("does not exist", detect_format, tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path):
    refused("is an empty folder", load, tmp_path)


def test_folder_of_something_else(tmp_path: Path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    refused("holds no checkpoint", load, tmp_path)


def test_file_of_something_else(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("x")
    refused("give a folder or a .pt file", load, tmp_path / "notes.txt")


def test_another_model(copy: Path):
    edit_config(copy, lambda values: values.update(model_type="clip"))
    refused("describes a 'clip' model; a 'kosmos-2' model is needed", load, copy)


def test_unknown_format(hf_folder: Path, tmp_path: Path):
    refused("unknown format 'onnx'", convert, hf_folder, tmp_path / "x", "onnx")


# Hugging Face --------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.01, 0.5, 0.99, 0.99999])
def test_weights_cut_short(copy: Path, part: float):
    file = copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    refused("model.safetensors is cut short or damaged", load, copy)


def test_config_cut_short(copy: Path):
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text[:100])
    refused("config.json is cut short", load, copy)


def test_weights_missing(copy: Path):
    (copy / "model.safetensors").unlink()
    refused("holds neither model.safetensors nor", load, copy)


def test_weights_only_for_torch(copy: Path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    refused("holds pytorch_model.bin but no safetensors", load, copy)


def test_shard_missing(hf_folder: Path, tmp_path: Path):
    convert(hf_folder, tmp_path / "shards", "hf", max_shard_size=40_000)
    next((tmp_path / "shards").glob("model-00002-*")).unlink()
    refused("model-00002-of-.* is missing", load, tmp_path / "shards")


def test_index_names_a_file_outside(hf_folder: Path, tmp_path: Path):
    convert(hf_folder, tmp_path / "shards", "hf", max_shard_size=40_000)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    name = next(iter(values["weight_map"]))
    values["weight_map"][name] = "../shards/model-00001.safetensors"
    index.write_text(json.dumps(values))
    refused("names a file outside", load, tmp_path / "shards")


def test_missing_extra_and_misshapen_tensors_in_one_error(copy: Path):
    def change(tensors: dict) -> None:
        del tensors["text_model.model.layers.1.ffn.fc1.weight"]
        tensors["text_model.model.layers.3.ffn.fc1.bias"] = np.zeros(64, np.float32)
        tensors["image_to_text_projection.latent_query"] = np.zeros((6, 32), np.float32)

    edit_weights(copy, change)
    message = refused("does not fit its config", load, copy)
    assert "missing text_model.model.layers.1.ffn.fc1.weight" in message
    assert "extra text_model.model.layers.3.ffn.fc1.bias" in message
    assert "latent_query has shape (6, 32) instead of (5, 32)" in message


def test_long_lists_are_counted(copy: Path):
    edit_config(copy, lambda values: values["text_config"].update(layers=6))
    message = refused("does not fit its config", load, copy)
    assert message.count("missing") == 20
    assert "and 40 more" in message  # 3 layers of 20 tensors


def test_no_embedding_at_all(copy: Path):
    edit_weights(copy, lambda tensors: tensors.pop(HUGGING_FACE.embedding))
    refused("missing text_model.model.embed_tokens.weight", load, copy)


def test_old_buffers_are_ignored(copy: Path):
    edit_weights(
        copy,
        lambda tensors: tensors.update(
            {"text_model.model.embed_positions.weights": np.zeros((9, 32), np.float32)}
        ),
    )
    assert load(copy).config.decoder.num_layers == 3


def test_untied_head(copy: Path):
    edit_weights(
        copy,
        lambda tensors: tensors.update({HUGGING_FACE.head: tensors[HUGGING_FACE.embedding] + 1}),
    )
    refused("differ, but Kosmos-2 ties them", load, copy)


def test_quantised_tensor(copy: Path):
    name = "text_model.model.layers.0.ffn.fc1.weight"
    edit_weights(copy, lambda tensors: tensors.update({name: tensors[name].astype(np.int8)}))
    refused("fc1.weight has dtype I8", load, copy)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("text_config", "activation_function", "relu"),
        ("text_config", "scale_embedding", False),
        ("text_config", "pad_token_id", 0),
        ("vision_config", "hidden_act", "gelu"),
        ("vision_config", "num_channels", 1),
        ("", "tie_word_embeddings", False),
    ],
)
def test_settings_that_we_do_not_model(copy: Path, section: str, field: str, value: object):
    edit_config(
        copy, lambda values: (values[section] if section else values).update({field: value})
    )
    refused(f"{field} is {value!r}; only", load, copy)


def test_odd_numbers_in_a_config(copy: Path):
    edit_config(copy, lambda values: values["text_config"].update(layers="three"))
    refused("text_config layers is 'three'", load, copy)
    edit_config(copy, lambda values: values["text_config"].update(layers=3, attention_heads=5))
    refused("not a multiple", load, copy)


def test_fields_left_out_have_the_values_of_the_reference(tmp_path: Path):
    """Old configs hold only what differs from the defaults."""
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "kosmos-2", "text_config": {"layers": 2}}')
    config = hugging_face.hf_config.read_config(path, 32)
    assert config == Kosmos2Config().replace(decoder={"num_layers": 2})


# fairseq -------------------------------------------------------------------------------------


@pytest.fixture
def official(hf_folder: Path, tmp_path: Path) -> Path:
    convert(hf_folder, tmp_path / "kosmos-2.pt", "fairseq")
    return tmp_path / "kosmos-2.pt"


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_torch_file_cut_short(official: Path, part: float):
    content = official.read_bytes()
    official.write_bytes(content[: int(len(content) * part)])
    refused("cut short or no torch file|unreadable data", load, official)


def test_torch_file_of_something_else(official: Path):
    torch.save([1, 2], official)
    refused("is no fairseq checkpoint", load, official)
    torch.save({"model": {"weight": torch.zeros(2)}}, official)
    refused("is no Kosmos-2 checkpoint", load, official)


def test_torch_file_with_other_objects(official: Path):
    state = torch.load(official, weights_only=True)
    torch.save({**state, "cfg": {"model": argparse.Namespace(arch="unigptmodel_xl")}}, official)
    assert load(official).config.decoder.num_layers == 3  # as fairseq writes it
    torch.save({**state, "cfg": decimal.Decimal(1)}, official)
    refused("holds an object of type decimal.Decimal", load, official)


def test_official_file_without_tokenizer(official: Path):
    state = torch.load(official, weights_only=True)
    del state["kosmos2_jax"]
    torch.save(state, official)
    refused("no sentencepiece.bpe.model beside", load, official)


def test_official_file_of_unknown_heads(official: Path, tiny: Kosmos2Config):
    state = torch.load(official, weights_only=True)
    del state["kosmos2_jax"]
    torch.save(state, official)
    assert load(official, config=tiny).config == tiny


def test_several_torch_files(official: Path):
    shutil.copy(official, official.with_name("other.pt"))
    refused("holds 2 .pt files; name one", load, official.parent)


# Ours ----------------------------------------------------------------------------------------


@pytest.fixture
def ours(hf_folder: Path, tmp_path: Path) -> Path:
    convert(hf_folder, tmp_path / "ours", "orbax")
    return tmp_path / "ours"


def test_arrays_cut_short(ours: Path, tmp_path: Path):
    """Whichever file is cut, the answer is an error or the right weights, never wrong ones."""
    good = flatten(load(ours).params)
    names = [path.relative_to(ours) for path in (ours / "params").rglob("*") if path.is_file()]
    errors = 0
    for number, name in enumerate(names):
        damaged = Path(shutil.copytree(ours, tmp_path / f"damaged{number}"))
        content = (damaged / name).read_bytes()
        (damaged / name).write_bytes(content[: len(content) // 2])
        try:
            found = flatten(load(damaged).params)
        except CheckpointError as error:
            errors += 1
            assert "cut short or damaged" in str(error)
            continue
        for path, leaf in good.items():
            np.testing.assert_array_equal(found[path], leaf)
    assert errors >= 2


def test_arrays_missing(ours: Path):
    shutil.rmtree(ours / "params")
    refused("params is missing", load, ours)


def test_arrays_of_another_model(ours: Path):
    values = json.loads((ours / "kosmos2.json").read_text())
    values["config"]["resampler"]["num_latents"] = 7
    (ours / "kosmos2.json").write_text(json.dumps(values))
    refused(r"latents has shape \(5, 32\) instead of \(7, 32\)", load, ours)


def test_our_json_damaged(ours: Path):
    values = json.loads((ours / "kosmos2.json").read_text())
    (ours / "kosmos2.json").write_text(json.dumps({**values, "format": 2}))
    refused("has format 2", load, ours)
    (ours / "kosmos2.json").write_text(json.dumps({**values, "config": {"colour": 1}}))
    refused("unknown setting colour", load, ours)
    (ours / "kosmos2.json").write_text("{")
    refused("cut short", load, ours)


# Writing -------------------------------------------------------------------------------------

WRITERS = [hugging_face.write_folder, fairseq.write_file, orbax_io.save_folder]


@pytest.mark.parametrize("write", WRITERS[:2])
def test_xpos_is_not_exported(write: Callable, random_params: Callable, tmp_path: Path):
    config = preset("tiny").replace(decoder={"position": "xpos"})
    refused("xpos positions", write, tmp_path / "out", random_params(config), config, None)
    assert not list(tmp_path.iterdir())


def test_xpos_stays_in_our_format(random_params: Callable, tmp_path: Path):
    config = preset("tiny").replace(decoder={"position": "xpos"})
    orbax_io.save_folder(tmp_path / "ours", random_params(config), config, None)
    assert load(tmp_path / "ours").config == config


@pytest.mark.parametrize("write", WRITERS)
def test_parameters_that_do_not_fit(write: Callable, random_params: Callable, tmp_path: Path):
    params = random_params(preset("tiny"))
    del params["resampler"]["latents"]
    params["decoder"]["extra"] = np.zeros(1, np.float32)
    message = refused("does not fit", write, tmp_path / "out", params, preset("tiny"), None)
    assert "missing resampler/latents" in message and "extra decoder/extra" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["hf", "fairseq", "orbax"])
def test_nothing_is_overwritten(to: str, hf_folder: Path, ours: Path, tmp_path: Path):
    before = listing(ours)
    refused("is not empty", convert, hf_folder, ours, to)
    assert listing(ours) == before
    convert(hf_folder, ours, to, overwrite=True)
    assert detect_format(ours) == {"hf": "hugging_face"}.get(to, to)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_only_checkpoints_are_overwritten(hf_folder: Path, tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    refused("no checkpoint, so it is not", convert, hf_folder, tmp_path / "home", "hf",
            overwrite=True)  # fmt: skip
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_torch_file_is_not_overwritten(hf_folder: Path, official: Path):
    before = official.read_bytes()
    refused("exists", convert, hf_folder, official, "fairseq")
    assert official.read_bytes() == before
    convert(hf_folder, official, "fairseq", overwrite=True)


def test_into_the_empty_folder_one_stands_in(hf_folder: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(hf_folder, ".", "hf")
    assert detect_format(tmp_path / "here") == "hugging_face"


def test_a_file_is_in_the_way(hf_folder: Path, tmp_path: Path):
    (tmp_path / "out").write_text("x")
    refused("is a file", convert, hf_folder, tmp_path / "out", "hf", overwrite=True)


def test_source_inside_destination(ours: Path):
    refused("lie in one another", convert, ours, ours, "hf", overwrite=True)
    refused("lie in one another", convert, ours, ours / "hf", "hf")


def test_a_failed_conversion_leaves_nothing(copy: Path, tmp_path: Path):
    edit_weights(copy, lambda tensors: tensors.pop("image_to_text_projection.dense.bias"))
    for to in ("hf", "fairseq", "orbax"):
        refused("missing", convert, copy, tmp_path / "out", to)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
