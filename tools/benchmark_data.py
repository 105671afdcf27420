"""Measures how full packed rows are and how fast pictures come, on lengths like the papers'.

Documents are made on the fly: text, captions, grounded captions and interleaved pages in the
proportions of Kosmos-2's pretraining. They are written to TFRecords and read by the training
pipeline, and the very same pictures are decoded and resized by a plain loop of Pillow, turn and
turn about. Rates are per second of processor time, so that they are those of one core, and mean
something on a busy machine. The last line printed is JSON:

  fill: share of the places of rows that hold tokens; image_fill: of pictures.
  images_per_s_ratio: pictures per core and second of the pipeline, by those of the plain loop, of
    photographs of 640x480. The same of pictures as img2dataset leaves GRIT's (short side 256) and
    of pictures stored at the training size, which both decode only, stand beside it.
  parts_ms: milliseconds of a core that each part takes for one picture and the text around it.

    python tools/benchmark_data.py
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kosmos2_jax.startup import prepare_environment

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    import numpy as np
    import tensorflow as tf

    from kosmos2_jax.data.documents import Document
    from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

KINDS = ("text", "caption", "grounded", "interleaved")
SAMPLES = (93, 1117, 1117, 47)  # of each kind in an update, spec section 4.6
SIZES = {"stored": (224, 224), "img2dataset": (341, 256), "photograph": (640, 480)}
HEADLINE = "photograph"
IMAGE_SIZE, LATENTS = 224, 64  # spec section 0
FILES = 8
TURNS = 40  # of the pipeline and the plain loop


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=4000, help="made for each size of picture")
    parser.add_argument("--pictures", type=int, default=6000, help="measured of each size")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--images", type=int, default=24, help="pictures of a row at most")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a batch")
    parser.add_argument("--streams", type=int, default=8, help="that the data are dealt to")
    parser.add_argument("--threads", type=int, default=1, help="that decode")
    parser.add_argument("--seed", type=int, default=0, help="of documents and their order")
    arguments = parser.parse_args(argv)
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = _vocabulary(Path(folder))
        found = {kind: _measure(kind, vocabulary, Path(folder, kind), arguments) for kind in SIZES}
    print(json.dumps(_summary(found)))
    return 0


def _summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    columns = {name: {kind: found[kind][name] for kind in found} for name in found[HEADLINE]}
    return {
        "fill": found[HEADLINE]["fill"],
        "image_fill": found[HEADLINE]["image_fill"],
        "images_per_s_ratio": found[HEADLINE]["ratio"],
        **{f"images_per_s_ratio_{kind}": ratio for kind, ratio in columns["ratio"].items()},
        "images_per_core_second": columns["rate"],
        "plain_images_per_core_second": columns["plain_rate"],
        "parts_ms": columns["parts_ms"],
        "checkpoint_mb": columns["checkpoint_mb"],
    }


def _measure(
    kind: str, vocabulary: Kosmos2Vocabulary, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """All figures for pictures of one size."""
    import numpy as np

    from kosmos2_jax.data.features import feature_lengths
    from kosmos2_jax.data.packed_pipeline import packed_batches

    rng = np.random.default_rng(arguments.seed)
    pictures = _encoded_pictures(SIZES[kind], rng)
    _say(f"{kind}: writing {arguments.documents:,} documents")
    words = _words(vocabulary)
    choice = rng.choice(KINDS, arguments.documents, p=np.array(SAMPLES) / sum(SAMPLES))
    documents = [_document(k, i, words, pictures, SIZES[kind], rng) for i, k in enumerate(choice)]
    per_document = np.mean([len(document.images) for document in documents])
    name = _register(f"benchmark_{kind}", folder, documents, vocabulary)
    lengths = feature_lengths(arguments.length, arguments.images)

    batches = packed_batches(
        name,
        lengths,
        arguments.batch_size,
        arguments.seed,
        image_size=IMAGE_SIZE,
        image_mode="square",  # as the plain loop
        num_streams=arguments.streams,
        threads=arguments.threads,
    )
    for _ in range(12):  # buffers fill up
        next(batches)
    rows, delivered, tokens = 0, 0, 0
    plain: list[float] = []
    share = -(-arguments.pictures // TURNS)
    started = time.process_time()
    while delivered < arguments.pictures:
        # By turns, as a machine that has other things to do too is not always as fast.
        if delivered >= share * len(plain):
            plain.append(_plain_loop(pictures, share))
        batch = next(batches)
        rows += len(batch["tokens"])
        tokens += int((batch["segment_ids"] > 0).sum())
        delivered += int((batch["image_slots"].max(axis=1) // LATENTS + 1).sum())
    used = time.process_time() - started - share * sum(plain)
    batches.skips().check()
    checkpoint = len(batches.get_state())
    batches.close()
    plain_rate = len(plain) / sum(plain)
    _say(f"{kind}: {delivered / used:,.0f} pictures/s of a core; a plain loop {plain_rate:,.0f}")
    parts = _parts(name, lengths, float(per_document))
    parts["decode and batch"] = used / delivered - sum(parts.values())
    return {
        "fill": tokens / rows / arguments.length,
        "image_fill": delivered / rows / arguments.images,
        "ratio": delivered / used / plain_rate,
        "rate": delivered / used,
        "plain_rate": plain_rate,
        "parts_ms": {part: round(1000 * seconds, 4) for part, seconds in parts.items()},
        "checkpoint_mb": checkpoint / 1e6,
    }


def _plain_loop(pictures: Sequence[bytes], count: int) -> float:
    """Seconds of a core that decoding and resizing a picture take, in this thread alone."""
    import numpy as np
    from PIL import Image

    started = time.thread_time()  # the pipeline may read ahead meanwhile
    for index in range(count):
        image = Image.open(io.BytesIO(pictures[index % len(pictures)])).convert("RGB")
        np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
    return (time.thread_time() - started) / count


def _parts(name: str, lengths: dict[str, int], pictures_a_document: float) -> dict[str, float]:
    """Seconds of a core for one picture and what comes with it, by part up to packing.

    Each part is measured by running the pipeline up to it, for an epoch.
    """
    import seqio
    import tensorflow as tf

    from kosmos2_jax.data.packing_converter import PackingFeatureConverter

    task = seqio.TaskRegistry.get(name)
    examples = task.get_dataset(lengths, "train", seed=0, trim_output_features=False)
    rows = PackingFeatureConverter(IMAGE_SIZE, pack=True, decode=False)(examples, lengths)
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False

    def seconds(dataset: tf.data.Dataset, count: Callable[[Any], tf.Tensor]) -> float:
        dataset = dataset.with_options(options)
        started = time.process_time()
        total = dataset.reduce(tf.constant(0.0), lambda n, x: n + tf.cast(count(x), tf.float32))
        return (time.process_time() - started) / float(total)

    read = seconds(task.source.get_dataset("train", seed=0), lambda _: pictures_a_document)
    encoded = seconds(examples, lambda example: tf.size(example["images"]))
    packed = seconds(rows, lambda row: tf.math.count_nonzero(row["image_segments"]))
    return {"read": read, "encode": encoded - read, "pack": packed - encoded}


def _vocabulary(folder: Path) -> Kosmos2Vocabulary:
    """The released one where $KOSMOS2_ASSETS has it, or else one made of made-up words."""
    from kosmos2_jax.data.text_model import train_sentencepiece
    from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

    released = Path(os.environ.get("KOSMOS2_ASSETS", ""), "tokenizer", "sentencepiece.bpe.model")
    if released.exists():
        return Kosmos2Vocabulary(released)
    _say("no tokenizer in $KOSMOS2_ASSETS: making one")
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = [a + b for a in syllables for b in syllables]
    train_sentencepiece((" ".join(words[i::60]) for i in range(60)), folder / "spm.model", 4000)
    return Kosmos2Vocabulary(folder / "spm.model")


def _words(vocabulary: Kosmos2Vocabulary) -> list[str]:
    """Words of the vocabulary, frequent ones first as in a unigram model."""
    pieces = (token[1:] for token in vocabulary.tokens if token.startswith("▁"))
    return [piece for piece in pieces if piece.isascii() and piece.isalpha() and piece.islower()]


def _encoded_pictures(size: tuple[int, int], rng: np.random.Generator) -> list[bytes]:
    """JPEGs of this size: parts of real photographs, or of drawn noise where there are none."""
    import numpy as np
    from PIL import Image

    from kosmos2_jax.vision.preprocessing import load_image

    folder = Path(os.environ.get("KOSMOS2_ASSETS", ""), "images")
    photographs = [load_image(path) for path in sorted(folder.glob("*"))]
    if not photographs:
        _say("no pictures in $KOSMOS2_ASSETS: drawing some")
        noise = rng.integers(0, 256, (4, 60, 80, 3), dtype=np.uint8)
        photographs = [Image.fromarray(n).resize((1280, 960), Image.BICUBIC) for n in noise]
    encoded = []
    for number in range(96):
        photograph = photographs[number % len(photographs)]
        share = rng.uniform(0.6, 1.0)
        width, height = (int(side * share) for side in photograph.size)
        left, top = (int(rng.integers(0, a - b + 1)) for a, b in zip(
            photograph.size, (width, height), strict=True
        ))  # fmt: skip
        part = photograph.resize(size, Image.BICUBIC, (left, top, left + width, top + height))
        buffer = io.BytesIO()
        part.save(buffer, "JPEG", quality=95 if size[1] < 480 else 90)  # img2dataset has 95
        encoded.append(buffer.getvalue())
    return encoded


def _document(
    kind: str,
    number: int,
    words: Sequence[str],
    pictures: Sequence[bytes],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Document:
    """A document of made-up sentences and real pictures, of the lengths of its kind."""
    from kosmos2_jax.data.documents import Document

    def sentence(low: float, high: float) -> list[str]:
        ranks = rng.random(int(rng.integers(low, high))) ** 3  # frequent words more often
        return [words[int(rank * len(words))] for rank in ranks]

    images: list[bytes] = []
    if kind == "text":
        length = min(float(rng.lognormal(6.0, 1.0)), 1500.0)
        lines = [" ".join(sentence(10, 100)) for _ in range(max(1, round(length / 55)))]
        content: dict[str, Any] = {"text": "\n".join(lines)}
    elif kind == "interleaved":
        count = int(rng.integers(1, 6))
        texts = [" ".join(sentence(10, 120)) for _ in range(count)]
        content = {
            "parts": [part for pair in zip(range(count), texts, strict=True) for part in pair]
        }
        images = [pictures[int(i)] for i in rng.integers(0, len(pictures), count)]
    else:
        caption = sentence(10, 61)
        content = {"caption": " ".join(caption) + "."}
        images = [pictures[int(rng.integers(0, len(pictures)))]]
        if kind == "grounded":
            spans = [_annotation(caption, rng) for _ in range(int(rng.integers(1, 4)))]
            content |= {"noun_chunks": spans, "ref_exps": spans}
    return Document(kind, tuple(images), content, size, kind, f"{kind}/{number}")


def _annotation(caption: Sequence[str], rng: np.random.Generator) -> list[float]:
    first = int(rng.integers(0, len(caption) - 3))
    start = sum(len(word) + 1 for word in caption[:first])
    end = start + len(" ".join(caption[first : first + 3]))
    left, top = rng.uniform(0.2, 0.5, 2)
    return [start, end, left, top, left + 0.3, top + 0.3, 0.9]


def _register(
    name: str, folder: Path, documents: Sequence[Document], vocabulary: Kosmos2Vocabulary
) -> str:
    """Writes documents, and adds a seqio task over them; gives its name."""
    from kosmos2_jax.data import document_files, document_tasks
    from kosmos2_jax.data.encode_document import EncodeSettings

    document_files.write_documents(
        folder, "train", len(documents), documents.__getitem__, {}, num_shards=FILES
    )
    encode = EncodeSettings(num_latents=LATENTS)
    settings = document_tasks.TaskSettings(vocabulary, encode, shuffle_buffer=64)
    document_tasks.add_task(name, [str(folder)], settings, KINDS)
    return name


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
