"""Few-shot prompts: pictures and answers of the training split, the same ones each time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import seqio
from PIL import Image

from kosmos2_jax.config import preset
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.features import feature_lengths
from kosmos2_jax.tasks import benchmarks

LENGTHS = feature_lengths(512, 9)
TRAIN = {name: n for n, name in enumerate(("red", "green", "blue", "white", "black"), 1)}


def picture(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 8), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions with a training split of five colours, and three pictures to be asked about."""
    folder = tmp_path_factory.mktemp("downloads")
    pictures = folder / "flickr30k_captions" / "flickr30k-images"
    pictures.mkdir(parents=True)
    splits = [*((colour, "train") for colour in TRAIN), *((f"{n}", "test") for n in range(3))]
    images = []
    for name, split in splits:
        (pictures / f"{name}.png").write_bytes(picture(name if split == "train" else "grey"))
        captions = [{"raw": f"All {name}."}, {"raw": "Something."}]
        images.append(
            {"imgid": len(images), "split": split, "filename": f"{name}.png", "sentences": captions}
        )
    (folder / "flickr30k_captions/dataset_flickr30k.json").write_text(
        json.dumps({"images": images})
    )
    return folder


def asked(downloads: Path, assets: Path, shots: str, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Of each example what is read as text, and the colours of its pictures in order."""
    tokenizer = str(assets / "tokenizer" / "sentencepiece.bpe.model")
    model = preset("tiny").replace(grid_size=32)
    _, vocabulary = benchmarks.prepare(downloads, DataConfig(tokenizer=tokenizer), model, seed)
    task = seqio.get_mixture_or_task(f"flickr30k_captions_test{shots}")
    found = []
    for example in task.get_dataset(LENGTHS, "test", shuffle=False).as_numpy_iterator():
        text = example["image_slots"] < 0
        read = example["targets"][text & (example["loss_weights"] == 0)]
        colours = [Image.open(io.BytesIO(data)).getpixel((0, 0)) for data in example["images"]]
        names = {Image.new("RGB", (1, 1), name).getpixel((0, 0)): name for name in TRAIN}
        found.append((vocabulary.decode(read), [names.get(c, "asked") for c in colours]))
    return found


def test_demonstrations_stand_before_the_question(downloads, assets):
    shown = asked(downloads, assets, "_2shot")
    assert len(shown) == 3
    for text, (first, second, last) in shown:
        assert first != second and last == "asked"
        assert text == (
            f"<image></image> An image of All {first}.<image></image> An image of All {second}."
            "<image></image> An image of"
        )
    assert asked(downloads, assets, "_2shot") == shown
    other = asked(downloads, assets, "_2shot", seed=1)
    assert [colours for _, colours in other] != [colours for _, colours in shown]
    (text, colours), *_ = asked(downloads, assets, "_4shot")
    assert len(set(colours)) == 5 and text.count("An image of") == 5
    (text, colours), *_ = asked(downloads, assets, "")
    assert colours == ["asked"] and text == "<image></image> An image of"


def test_too_few_to_draw_from_are_told(downloads, assets):
    with pytest.raises(Exception, match="5 examples, fewer than the 8 that are to be shown"):
        asked(downloads, assets, "_8shot")
