"""Folders that `from_pretrained` takes whole: model, tokenizer and processor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmos2_jax.config import Kosmos2Config, preset
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
from kosmos2_jax.interop import fairseq, hugging_face, orbax_io, tokenizer_files
from kosmos2_jax.interop.convert import convert, load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def real_folder(
    assets: Path, tmp_path_factory: pytest.TempPathFactory, random_params: Callable
) -> Path:
    """A small random model with the released vocabulary of 65,037 tokens, exported."""
    tokenizer = assets / "tokenizer"
    vocabulary = Kosmos2Vocabulary(
        tokenizer / "sentencepiece.bpe.model", dict_file=tokenizer / "dict.txt"
    )
    config = preset("tiny").replace(
        grid_size=32, decoder={"vocab_size": 65037}, resampler={"num_latents": 64}
    )
    folder = tmp_path_factory.mktemp("real") / "hf"
    hugging_face.write_folder(folder, random_params(config), config, vocabulary)
    return folder


@pytest.fixture(scope="module")
def real_processor(real_folder: Path):
    return transformers.AutoProcessor.from_pretrained(real_folder)


@pytest.fixture(scope="module")
def small_folder(
    tmp_path_factory: pytest.TempPathFactory,
    small: Kosmos2Config,
    small_vocabulary: Kosmos2Vocabulary,
    random_params: Callable,
) -> Path:
    folder = tmp_path_factory.mktemp("small") / "hf"
    hugging_face.write_folder(
        folder, random_params(small), small, small_vocabulary, {"no_repeat_ngram_size": 0}
    )
    return folder


def test_golden_ids_of_an_image_prompt(real_processor):
    image = Image.new("RGB", (40, 30), (200, 30, 10))
    inputs = real_processor(text="<grounding>An image of", images=image, return_tensors="pt")
    slots = list(range(4, 68))
    expected = [0, 64003, *slots, 64004, 64012, 712, 1648, 9]
    assert inputs["input_ids"].tolist() == [expected]
    assert inputs["image_embeds_position_mask"].tolist() == [[0, 0] + [1] * 64 + [0] * 5]
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)  # the size of this model's pictures


def test_golden_ids_of_plain_and_boxed_text(real_processor):
    plain = real_processor(
        text="<grounding> Two puppies sit in a field of grass.", add_eos_token=True
    )
    assert plain["input_ids"] == [
        0, 64012, 1264, 17772, 1357, 12, 10, 770, 9, 4464, 4, 2,
    ]  # fmt: skip
    boxed = real_processor(
        text="<grounding> <phrase> Two puppies </phrase> sit in a field of <phrase> grass "
        "</phrase>.",
        bboxes=[[(79, 1016), (135, 1008)], (480, 1023)],
        add_eos_token=True,
    )
    assert boxed["input_ids"] == [
        0, 64012, 64007, 1264, 17772, 64008, 64009, 64092, 65029, 64011, 64148, 65021, 64010,
        1357, 12, 10, 770, 9, 64007, 4464, 64008, 64009, 64493, 65036, 64010, 106, 4, 2,
    ]  # fmt: skip


def assert_same_tokenizer(first: Path, second: Path) -> None:
    """Equal but for the last bit of scores, where transformers' parser of numbers rounds."""
    a, b = json.loads(first.read_text()), json.loads(second.read_text())
    pieces, others = a["model"].pop("vocab"), b["model"].pop("vocab")
    assert a == b
    assert [piece for piece, _ in pieces] == [piece for piece, _ in others]
    np.testing.assert_allclose([s for _, s in pieces], [s for _, s in others], rtol=1e-15)


def test_transformers_saves_the_same_files(real_folder: Path, real_processor, tmp_path: Path):
    real_processor.save_pretrained(tmp_path)
    assert_same_tokenizer(real_folder / "tokenizer.json", tmp_path / "tokenizer.json")
    ours = json.loads((real_folder / "processor_config.json").read_text())
    assert ours == json.loads((tmp_path / "processor_config.json").read_text())


def test_pixels_are_those_of_the_reference(assets: Path, real_processor):
    reference = transformers.CLIPImageProcessorPil(size={"height": 28, "width": 28})
    picture = Image.open(sorted((assets / "images").glob("*.*"))[0]).convert("RGB")
    ours = real_processor(text="a", images=picture, return_tensors="np")["pixel_values"]
    theirs = reference(picture, return_tensors="np", crop_size={"height": 28, "width": 28})
    np.testing.assert_array_equal(ours, theirs["pixel_values"])


def test_our_vocabulary_agrees_with_the_exported_tokenizer(real_folder: Path, real_processor):
    checkpoint = load(real_folder)
    assert checkpoint.vocabulary is not None
    assert checkpoint.config.grid_size == checkpoint.vocabulary.grid_size == 32
    assert checkpoint.generation == {"no_repeat_ngram_size": 3}
    tokenizer = real_processor.tokenizer
    assert len(tokenizer) == checkpoint.vocabulary.vocab_size == 65037
    assert tuple(tokenizer.convert_ids_to_tokens(range(65037))) == checkpoint.vocabulary.tokens


def test_dict_txt_equals_the_official_one(assets: Path, real_folder: Path):
    written = tokenizer_files.dict_txt(load(real_folder).vocabulary)
    assert written == (assets / "tokenizer" / "dict.txt").read_text(encoding="utf-8")


def test_generation_settings_reach_transformers(real_folder: Path, small_folder: Path):
    for folder, size in ((real_folder, 3), (small_folder, 0)):
        settings_read = transformers.GenerationConfig.from_pretrained(folder)
        assert settings_read.no_repeat_ngram_size == size
        assert settings_read.bos_token_id == 0
        assert (settings_read.pad_token_id, settings_read.eos_token_id) == (1, 2)


# A small sentencepiece model with an 8 x 8 grid ----------------------------------------------


def test_small_folder_generates_in_transformers(small_folder: Path, small: Kosmos2Config):
    """Everything from the folder alone, the number of image slots included."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(small_folder)
    processor = transformers.AutoProcessor.from_pretrained(small_folder)
    assert processor.num_patch_index_tokens == 64
    inputs = processor(
        text="<grounding> a small red star",
        images=Image.new("RGB", (28, 28)),
        return_tensors="pt",
    )
    assert inputs["image_embeds_position_mask"].sum() == small.resampler.num_latents
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert output.shape[1] > inputs["input_ids"].shape[1]


def test_small_tokenizer_and_boxes(small_folder: Path, small_vocabulary: Kosmos2Vocabulary):
    processor = transformers.AutoProcessor.from_pretrained(small_folder)
    ids = processor(text="<phrase> a cat</phrase>", bboxes=[(0.0, 0.0, 1.0, 1.0)])["input_ids"]
    v = small_vocabulary
    first, last = v.location_id(0), v.location_id(63)
    phrase = [v.phrase_id, *v.encode("a cat"), v.end_phrase_id]
    assert ids == [0, *phrase, v.object_id, first, last, v.end_object_id]


@settings(deadline=None, max_examples=60)
@given(text=st.text("abcdefghistuw ,.?:é\nﬁＡ", max_size=40))
def test_small_tokenizer_equals_ours_on_any_text(
    small_folder: Path, small_vocabulary: Kosmos2Vocabulary, text: str
):
    tokenizer = _tokenizer(str(small_folder))
    assert tokenizer.encode(text, add_special_tokens=False) == small_vocabulary.encode(text)


_TOKENIZERS: dict[str, object] = {}


def _tokenizer(folder: str):
    if folder not in _TOKENIZERS:
        _TOKENIZERS[folder] = transformers.AutoTokenizer.from_pretrained(folder)
    return _TOKENIZERS[folder]


def test_small_folder_round_trips(small_folder: Path, small: Kosmos2Config, tmp_path: Path):
    convert(small_folder, tmp_path / "official", "fairseq")
    convert(tmp_path / "official", tmp_path / "ours", "orbax")
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    assert load(tmp_path / "hf").config == small
    for name in sorted(os.listdir(small_folder)):
        if name != "model.safetensors":  # which has the tied head by now, as fairseq's file
            assert (tmp_path / "hf" / name).read_bytes() == (small_folder / name).read_bytes()


def test_tokenizer_json_alone_is_enough(
    small_folder: Path, small_vocabulary: Kosmos2Vocabulary, tmp_path: Path
):
    """transformers 5 saves no sentencepiece model."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(small_folder)
    model.save_pretrained(tmp_path / "theirs")
    transformers.AutoProcessor.from_pretrained(small_folder).save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "sentencepiece.bpe.model").exists()
    checkpoint = load(tmp_path / "theirs")
    assert checkpoint.vocabulary.tokens == small_vocabulary.tokens
    for text in ("a small  red star", "Ａ cat,\nis it blue?", "zebra ö"):
        assert checkpoint.vocabulary.encode(text) == small_vocabulary.encode(text)
    convert(tmp_path / "theirs", tmp_path / "hf", "hf")
    assert_same_tokenizer(
        tmp_path / "hf" / "tokenizer.json", tmp_path / "theirs" / "tokenizer.json"
    )


def test_tokenizer_argument(hf_folder: Path, small_folder: Path, small_vocabulary, tmp_path: Path):
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load(hf_folder, tokenizer=small_vocabulary.model_file)
    with pytest.raises(CheckpointError, match="holds neither"):
        load(small_folder, tokenizer=tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load(small_folder, tokenizer=tmp_path / "nowhere")
    assert load(small_folder, tokenizer=small_vocabulary.model_file).config.grid_size == 8


def test_official_file_with_the_real_tokenizer(assets: Path, real_folder: Path, tmp_path: Path):
    """Nothing but tensors: the architecture follows from their shapes."""
    config = load(real_folder).config.replace(
        vision={"hidden_size": 64, "num_heads": 1, "num_layers": 1}, decoder={"max_length": 2048}
    )
    rng = np.random.default_rng(0)
    table = fairseq.FAIRSEQ
    model = {
        name: torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        for name, shape in table.shapes(config).items()
    }
    model[table.head] = model[table.embedding]
    torch.save({"model": model}, tmp_path / "kosmos-2.pt")
    checkpoint = load(tmp_path / "kosmos-2.pt", tokenizer=assets / "tokenizer")
    assert checkpoint.config == config
    assert checkpoint.generation == {"no_repeat_ngram_size": 3}


def test_tokenizer_of_another_model_beside_a_torch_file(
    small: Kosmos2Config, small_vocabulary, random_params: Callable, tmp_path: Path
):
    (tmp_path / "dict.txt").write_text("other 1\n")
    with pytest.raises(CheckpointError, match=r"dict.txt is of another tokenizer"):
        fairseq.write_file(tmp_path / "a.pt", random_params(small), small, small_vocabulary)
    assert [path.name for path in tmp_path.iterdir()] == ["dict.txt"]


def test_wrong_vocabulary_is_refused(small_vocabulary, random_params: Callable, tmp_path: Path):
    config = preset("tiny")
    for write in (hugging_face.write_folder, fairseq.write_file, orbax_io.save_folder):
        with pytest.raises(CheckpointError, match="the model 120"):
            write(tmp_path / "x", random_params(config), config, small_vocabulary)
    assert not list(tmp_path.iterdir())


def test_model_without_grounding_tokens(small_vocabulary, random_params, tmp_path: Path):
    vocabulary = Kosmos2Vocabulary(small_vocabulary.model_file, grid_size=0)
    config = preset("tiny").replace(grid_size=0, decoder={"vocab_size": vocabulary.vocab_size})
    with pytest.raises(CheckpointError, match="no grounding tokens"):
        hugging_face.write_folder(tmp_path / "hf", random_params(config), config, vocabulary)
    orbax_io.save_folder(tmp_path / "ours", random_params(config), config, vocabulary)
    assert load(tmp_path / "ours").vocabulary == vocabulary


def test_other_kinds_of_sentencepiece_models_are_refused(tmp_path: Path):
    (tmp_path / "text.txt").write_text("a small red star left of the blue square\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "bpe"),
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(CheckpointError, match="needs a unigram model"):
        tokenizer_files.tokenizer_json(Kosmos2Vocabulary(tmp_path / "bpe.model", 8))
