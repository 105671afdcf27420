"""Readers of benchmarks as they are published, and the table of them.

A reader takes the folder that a benchmark was downloaded into and gives the records of a split and
the examples that are lost. It needs neither TensorFlow nor JAX, and opens no picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kosmos2_jax.data.benchmarks import (
    birds,
    captions,
    commonsense,
    flickr30k,
    imagenet,
    language,
    picture_choices,
    questions,
    raven,
    refcoco,
)
from kosmos2_jax.data.benchmarks.reading import Reading
from kosmos2_jax.data.skips import DataError

_COCO = "https://cocodataset.org/#download"
_MDETR = "https://zenodo.org/record/4729015 (mdetr_annotations.tar.gz)"
_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
_FLICKR = "https://shannon.cs.illinois.edu/DenotationGraph/ (pictures, on request)"
_VALM = "https://github.com/Victorwz/VaLM/tree/main/data"
_SUPERGLUE = "https://super.gluebenchmark.com/tasks"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
      summary: what it is, in a line.
      source: where its files come from.
      splits: those that can be read, the usual one first.
      files: `split` to the files and folders that it needs, below the folder of the download.
      read: `(folder, split)` to its records.
      train: the split that demonstrations are drawn from, which may be one that is asked; empty
        where there is none.
    """

    summary: str
    source: str
    splits: tuple[str, ...]
    files: Callable[[str], tuple[str, ...]]
    read: Callable[[Path, str], Reading]
    train: str = ""

    def missing(self, folder: Path, split: str) -> list[str]:
        """Returns the files and folders that are not there.

        Raises:
          DataError: there is no such split.
        """
        known = dict.fromkeys((*self.splits, self.train) if self.train else self.splits)
        if split not in known:
            raise DataError(f"There is no split {split!r}: use one of {', '.join(known)}.")
        return [name for name in self.files(split) if not (folder / name).exists()]


def _language(task: str, summary: str, source: str) -> Benchmark:
    asked, *others = language.FILES[task]
    return Benchmark(
        summary,
        source,
        (asked,),
        lambda split: language.FILES[task][split],
        partial(language.read, task),
        train=others[0] if others else asked,
    )


def _commonsense(
    summary: str, file: str, folder: str, read: Callable[[Path], Reading]
) -> Benchmark:
    source = f"{_VALM}/{folder}"
    return Benchmark(
        summary, source, ("test",), lambda split: (file,), lambda folder, split: read(folder)
    )


def _referring(name: str, title: str) -> Benchmark:
    return Benchmark(
        f"referring expression comprehension on {title}, MDETR's JSON",
        f"{_MDETR}; train2014: {_COCO}",
        refcoco.SETS[name],
        partial(refcoco.comprehension_files, name),
        partial(refcoco.read_comprehension, name),
    )


BENCHMARKS = {
    "flickr30k_grounding": Benchmark(
        "phrase grounding on Flickr30k Entities, phrases as MDETR lists them",
        f"https://github.com/BryanPlummer/flickr30k_entities; {_MDETR}; {_FLICKR}",
        ("test", "val"),
        flickr30k.files,
        flickr30k.read,
    ),
    "refcoco": _referring("refcoco", "RefCOCO"),
    "refcoco_plus": _referring("refcoco+", "RefCOCO+"),
    "refcocog": _referring("refcocog", "RefCOCOg"),
    "refcocog_generation": Benchmark(
        "referring expression generation on RefCOCOg, the refer toolkit's files",
        f"https://github.com/lichengunc/refer; train2014: {_COCO}",
        refcoco.SETS["refcocog"],
        partial(refcoco.generation_files, "refcocog"),
        partial(refcoco.read_generation, "refcocog"),
        train="train",
    ),
    "flickr30k_captions": Benchmark(
        "captions of Flickr30k, Karpathy's split",
        f"{_KARPATHY}; {_FLICKR}",
        ("test", "val"),
        partial(captions.karpathy_files, "flickr30k"),
        partial(captions.read_karpathy, "flickr30k"),
        train="train",
    ),
    "coco_captions": Benchmark(
        "captions of COCO, Karpathy's split",
        f"{_KARPATHY}; train2014 and val2014: {_COCO}",
        ("test", "val"),
        partial(captions.karpathy_files, "coco"),
        partial(captions.read_karpathy, "coco"),
        train="train",
    ),
    "coco_val_captions": Benchmark(
        "captions of COCO, its own validation sets",
        _COCO,
        ("val2014", "val2017"),
        captions.coco_files,
        captions.read_coco,
    ),
    "vqav2": Benchmark(
        "questions of VQAv2",
        f"https://visualqa.org/download.html; pictures: {_COCO}",
        questions.VQA_SPLITS,
        questions.vqa_files,
        questions.read_vqa,
        train="train2014",
    ),
    "vizwiz": Benchmark(
        "questions of blind people, VizWiz-VQA",
        "https://vizwiz.org/tasks-and-datasets/vqa/",
        questions.VIZWIZ_SPLITS,
        questions.vizwiz_files,
        questions.read_vizwiz,
        train="train",
    ),
    "websrc": Benchmark(
        "questions about web pages, WebSRC",
        "https://x-lance.github.io/WebSRC/",
        questions.WEBSRC_SPLITS,
        questions.websrc_files,
        questions.read_websrc,
    ),
    "seed_bench": Benchmark(
        "choices about pictures, SEED-Bench dimensions 1 to 9",
        "https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
        ("test",),
        lambda split: picture_choices.SEED_FILES,
        lambda folder, split: picture_choices.read_seed_bench(folder),
    ),
    "hateful_memes": Benchmark(
        "yes or no about memes, HatefulMemes",
        "https://ai.meta.com/tools/hatefulmemes/",
        tuple(picture_choices.HATEFUL_MEMES_FILES),
        lambda split: ("img", picture_choices.HATEFUL_MEMES_FILES[split]),
        picture_choices.read_hateful_memes,
    ),
    "rendered_sst2": Benchmark(
        "sentiment of sentences drawn as pictures, Rendered SST-2",
        "https://openaipublic.azureedge.net/clip/data/rendered-sst2.tgz",
        ("test", "valid"),
        picture_choices.sst2_files,
        picture_choices.read_rendered_sst2,
    ),
    "imagenet": Benchmark(
        "names of pictures, ImageNet's validation set",
        "https://www.kaggle.com/c/imagenet-object-localization-challenge/data",
        ("val",),
        lambda split: imagenet.FILES,
        lambda folder, split: imagenet.read(folder),
    ),
    "hellaswag": _language(
        "hellaswag",
        "how a scene goes on, HellaSwag",
        "https://github.com/rowanz/hellaswag/tree/master/data",
    ),
    "piqa": _language(
        "piqa",
        "how to do things, PIQA",
        "https://yonatanbisk.com/piqa/data/",
    ),
    "boolq": _language("boolq", "yes or no about a passage, BoolQ", f"{_SUPERGLUE} (BoolQ.zip)"),
    "cb": _language("cb", "what follows from a text, CommitmentBank", f"{_SUPERGLUE} (CB.zip)"),
    "copa": _language("copa", "causes and effects, COPA", f"{_SUPERGLUE} (COPA.zip)"),
    "winograd": _language(
        "winograd",
        "whom a pronoun means, the Winograd Schema Challenge (WSC273)",
        "https://cs.nyu.edu/~davise/papers/WinogradSchemas/WSCollection.xml",
    ),
    "winogrande": _language(
        "winogrande", "whom a gap means, Winogrande", "https://winogrande.allenai.org/"
    ),
    "storycloze": _language(
        "storycloze",
        "how a story ends, Story Cloze of spring 2016",
        "https://cs.rochester.edu/nlp/rocstories/ (on request)",
    ),
    "relative_size": _commonsense(
        "which of two things is larger, RelativeSize",
        commonsense.RELATIVE_SIZE_FILE,
        "object_size",
        commonsense.read_relative_size,
    ),
    "memory_color": _commonsense(
        "the colour of a thing, MemoryColor",
        commonsense.MEMORY_COLOR_FILE,
        "object_color",
        commonsense.read_memory_color,
    ),
    "color_terms": _commonsense(
        "the colour of a thing, ColorTerms",
        commonsense.COLOR_TERMS_FILE,
        "object_color",
        commonsense.read_color_terms,
    ),
    "raven": Benchmark(
        "which picture comes next, the matrices of Kosmos-1's IQ test",
        "https://aka.ms/kosmos-iq50 (laid out as kosmos2_jax/data/benchmarks/raven.py says: the "
        "archive's own layout could not be verified)",
        ("test",),
        lambda split: raven.FILES,
        lambda folder, split: raven.read(folder),
    ),
    "birds": Benchmark(
        "which of two birds, by their descriptions",
        "nowhere, it was never published (https://arxiv.org/abs/2302.14045, section 4.7): lay "
        "yours out as kosmos2_jax/data/benchmarks/birds.py says",
        ("test",),
        lambda split: birds.FILES,
        lambda folder, split: birds.read(folder),
    ),
}
