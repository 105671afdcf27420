"""Hugging Face to ours and back, to fairseq and back: names and bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kosmos2_jax.config import Kosmos2Config, preset
from kosmos2_jax.interop import hugging_face
from kosmos2_jax.interop.convert import convert, detect_format, load
from kosmos2_jax.interop.layout import flatten, stack_layers, unstack_layers
from kosmos2_jax.interop.names import FAIRSEQ, HUGGING_FACE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def _weights(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same_bits(first: dict, second: dict) -> None:
    assert set(first) == set(second)
    for name in first:
        a, b = np.asarray(first[name]), np.asarray(second[name])
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert a.tobytes() == b.tobytes(), name


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, hf_model: Callable) -> Path:
    """24 + 24 narrow layers, all 886 names in the file."""
    config = preset("tiny").replace(vision={"num_layers": 24}, decoder={"num_layers": 24})
    folder = tmp_path_factory.mktemp("deep") / "hf"
    model = hf_model(config)
    model.save_pretrained(folder)
    tensors = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    assert len(tensors) == 886
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_886_tensors_through_our_format(deep: Path, tmp_path: Path):
    convert(deep, tmp_path / "ours", "orbax")
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    weights = _weights(tmp_path / "hf")
    assert len(weights) == 886
    assert_same_bits(weights, _weights(deep))


def test_888_tensors_through_fairseq(deep: Path, tmp_path: Path):
    convert(deep, tmp_path / "kosmos-2.pt", "fairseq")
    state = torch.load(tmp_path / "kosmos-2.pt", weights_only=True)["model"]
    assert len(state) == 888
    head, embedding = state[FAIRSEQ.head], state[FAIRSEQ.embedding]
    assert head.data_ptr() == embedding.data_ptr()
    convert(tmp_path / "kosmos-2.pt", tmp_path / "hf", "hf")
    assert_same_bits(_weights(tmp_path / "hf"), _weights(deep))
    convert(tmp_path / "hf", tmp_path / "again", "fairseq")
    again = torch.load(tmp_path / "again" / "kosmos-2.pt", weights_only=True)["model"]
    assert_same_bits(again, state)


def test_names_written_are_the_names_read(hf_folder: Path, tmp_path: Path):
    """transformers leaves the tied head out; so do we, unless the source had it."""
    source = _weights(hf_folder)
    assert HUGGING_FACE.head not in source
    convert(hf_folder, tmp_path / "hf", "hf")
    assert_same_bits(_weights(tmp_path / "hf"), source)


def test_transformers_loads_what_we_write(hf_folder: Path, tmp_path: Path, hf_model, tiny):
    convert(hf_folder, tmp_path / "hf", "hf", max_shard_size=40_000)
    ours = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf")
    assert_same_bits(ours.state_dict(), hf_model(tiny).state_dict())
    source = transformers.AutoModelForImageTextToText.from_pretrained(hf_folder)
    assert type(ours) is type(source)
    sections = ("text_config", "vision_config", "latent_query_num", "tie_word_embeddings")
    found, expected = ours.config.to_dict(), source.config.to_dict()
    assert {key: found[key] for key in sections} == {key: expected[key] for key in sections}


def test_transformers_ties_a_file_with_both_copies(deep: Path, tmp_path: Path):
    convert(deep, tmp_path / "hf", "hf")
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert_same_bits(model.state_dict(), _weights(deep))


def test_sharded_files_and_index(hf_folder: Path, tmp_path: Path):
    convert(hf_folder, tmp_path / "shards", "hf", max_shard_size=40_000)
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert_same_bits(_weights(tmp_path / "shards"), _weights(hf_folder))
    convert(tmp_path / "shards", tmp_path / "single", "hf")
    assert_same_bits(_weights(tmp_path / "single"), _weights(hf_folder))


def test_reads_shards_of_transformers(hf_model, tiny: Kosmos2Config, tmp_path: Path, hf_folder):
    hf_model(tiny).save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    assert_same_bits(flatten(load(tmp_path / "theirs").params), flatten(load(hf_folder).params))


def test_fairseq_source_keeps_its_buffers(tiny, random_params, tmp_path: Path):
    """An official file with values of its own in the two buffers that are no parameters."""
    flat = flatten(random_params(tiny))
    model = {
        entry.foreign: torch.from_numpy(entry.to_foreign(flat[entry.ours]))
        for entry in FAIRSEQ.entries(tiny)
    }
    model[FAIRSEQ.head] = model[FAIRSEQ.embedding].clone()
    for name, make in FAIRSEQ.buffers.items():
        model[name] = torch.randn(make(tiny).shape)
    torch.save({"model": model}, tmp_path / "kosmos-2.pt")
    convert(tmp_path / "kosmos-2.pt", tmp_path / "ours", "orbax", config=tiny)
    convert(tmp_path / "ours", tmp_path / "again.pt", "fairseq")
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    assert_same_bits(again, model)


@pytest.mark.parametrize("kept", ["head", "embedding", "both"])
def test_either_copy_of_the_tied_head_is_enough(kept: str, hf_folder: Path, tmp_path: Path):
    weights = _weights(hf_folder)
    embedding = weights.pop(HUGGING_FACE.embedding)
    if kept in ("embedding", "both"):
        weights[HUGGING_FACE.embedding] = embedding
    if kept in ("head", "both"):
        weights[HUGGING_FACE.head] = embedding.copy()
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text((hf_folder / "config.json").read_text())
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    params = load(folder).params
    np.testing.assert_array_equal(params["decoder"]["token_embedding"], embedding)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(dtype: str, hf_model, tiny, tmp_path: Path):
    model = hf_model(tiny).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "half")
    params = load(tmp_path / "half").params
    expected = model.state_dict()["image_to_text_projection.latent_query"].float().numpy()
    assert params["resampler"]["latents"].dtype == np.float32
    np.testing.assert_array_equal(params["resampler"]["latents"], expected)


def test_read_params_and_layout(hf_folder: Path, hf_model, tiny: Kosmos2Config):
    params = hugging_face.read_params(hf_folder, tiny)
    state = hf_model(tiny).state_dict()
    np.testing.assert_array_equal(
        params["decoder"]["layers_1"]["mlp"]["up"]["kernel"],
        state["text_model.model.layers.1.ffn.fc1.weight"].numpy().T,
    )
    np.testing.assert_array_equal(
        params["vision"]["patch_embedding"]["kernel"],
        state["vision_model.model.embeddings.patch_embedding.weight"].numpy().transpose(2, 3, 1, 0),
    )


def test_stacked_layers_export_the_same(tiny, random_params, tmp_path: Path):
    params = random_params(tiny)
    stacked = stack_layers(params, tiny)
    kernel = stacked["decoder"]["layers"]["attention"]["query"]["kernel"]
    assert kernel.shape == (3, 32, 32) and "layers_0" not in stacked["decoder"]
    assert_same_bits(flatten(unstack_layers(stacked, tiny)), flatten(params))
    hugging_face.write_folder(tmp_path / "a", params, tiny, None)
    hugging_face.write_folder(tmp_path / "b", stacked, tiny, None)
    assert_same_bits(_weights(tmp_path / "a"), _weights(tmp_path / "b"))


def test_load_places_tensors_one_by_one(hf_folder: Path):
    seen: list[str] = []
    params = load(hf_folder, place=lambda path, array: seen.append(path) or array.shape).params
    assert params["resampler"]["latents"] == (5, 32)
    assert len(seen) == len(set(seen)) == len(flatten(params))


def test_formats_are_told_apart(hf_folder: Path, tmp_path: Path):
    report = convert(hf_folder, tmp_path / "ours", "orbax")
    assert (report.source_format, report.destination_format) == ("hugging_face", "orbax")
    assert not report.has_tokenizer
    convert(hf_folder, tmp_path / "official", "fairseq")
    assert detect_format(hf_folder) == "hugging_face"
    assert detect_format(tmp_path / "ours") == "orbax"
    assert detect_format(tmp_path / "official") == "fairseq"
    assert detect_format(tmp_path / "official" / "kosmos-2.pt") == "fairseq"
