"""The papers' mixtures over a folder of prepared sources, and mixtures of your own.

The folder has one folder for each kind of data; in it, or in folders of its own, lies what
`tools/prepare_data.py` wrote:

  text/                   plain text
  captions/               pictures with captions; GRIT too, whose boxes are then not read
  grit/                   pictures with grounded captions
  interleaved/            pages of text and pictures
  language_instructions/  instructions without pictures
  visual_instructions/    instructions with pictures
  benchmarks/             see `kosmos2_jax.tasks.benchmarks`: their tasks can be measured, too

A mixture gives rates, in examples and any unit, to kinds of `KINDS` or to single sources of them:

  {"text/wikipedia": 1, "captions": 3, "grounded": 3}
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import seqio
from etils import epath

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.data import prepare as preparation
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.readers.coco import CocoOptions
from kosmos2_jax.data.readers.pictures import SHORT, PictureRules
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

from . import benchmarks, captions, grit, instructions, interleaved, own, text


class Kind(NamedTuple):
    """What a mixture can hold: a folder, and `(name, folders, settings)` that registers a task."""

    folder: str
    register: Callable[..., None]


KINDS = {
    "text": Kind("text", text.register),
    "captions": Kind("captions", captions.register),
    # Both plain and grounded, by chance (spec section 4.3, step 5).
    "grit": Kind("grit", grit.register),
    "grounded": Kind("grit", functools.partial(grit.register, grounding_probability=1.0)),
    "interleaved": Kind("interleaved", interleaved.register),
    "language_instructions": Kind("language_instructions", instructions.register),
    "visual_instructions": Kind("visual_instructions", instructions.register),
    "grounded_instructions": Kind("grit", instructions.register_grounded),
    # All phrases of a picture in a row, each asked for; see `own`.
    "referring": Kind("grit", own.register_referring),
}

# Samples of an update; of those that no paper has, examples in any unit.
MIXTURES: dict[str, dict[str, float]] = {
    # Spec section 4.6.
    "kosmos2_pretrain": {"text": 93, "captions": 1117, "grounded": 1117, "interleaved": 47},
    # Spec section 4.7. How the 1,404 are divided between grounded pairs and the instructions
    # derived from them is not published: in half.
    "kosmos2_instruct": {
        "language_instructions": 117,
        "visual_instructions": 351,
        "grounded": 702,
        "grounded_instructions": 702,
        "text": 30,
        "interleaved": 15,
    },
    # Spec section 4.6, below the table.
    "kosmos1_pretrain": {"text": 256, "captions": 6144, "interleaved": 128},
    # Spec section 4.7, last line.
    "kosmos1_instruct": {
        "language_instructions": 256,
        "text": 32,
        "captions": 768,
        "interleaved": 16,
    },
    # For fine-tuning on data of one's own.
    "boxes": {"grounded": 1, "referring": 1},
    "captioning": {"captions": 1},
    "questions": {"visual_instructions": 1},
    "boxes_and_questions": {"grounded": 1, "referring": 1, "visual_instructions": 2},
}

# The name of a mixture that is made of rates.
OWN = "own_mixture"
# Before the names of old data's tasks.
OLD = "old."
# Where boxes lie that a run has prepared itself, see `prepare_boxes`.
OWN_BOXES = "own"
_FILES = 4  # of them, for as many streams


def prepare(
    folder: Path, data: DataConfig, model: Kosmos2Config, seed: int, *, prefix: str = ""
) -> tuple[str, Kosmos2Vocabulary]:
    """Registers the tasks and the mixture of a run, and what `own` measures of its sources.

    Args:
      folder: of prepared sources, see the module.
      data: `mixture` names one of `MIXTURES`, or `rates` are one; `boxes` are prepared first.
      model: whose pictures and grid the examples are for.
      seed: of what is left to chance in encoding.
      prefix: of the names of tasks, mixture and figures.

    Returns:
      The mixture's name, and the vocabulary.

    Raises:
      ConfigError: there is no such mixture, or no such kind in it.
      DataError: a source is missing, or `data.boxes` cannot be used.
    """
    if bool(data.mixture) == bool(data.rates):
        raise ConfigError(
            f"set either data.mixture, to {' or '.join(MIXTURES)}, or data.rates for one of your "
            "own"
        )
    if data.mixture and data.mixture not in MIXTURES:
        raise ConfigError(
            f"there is no mixture {data.mixture!r}: set data.mixture to {' or '.join(MIXTURES)}"
        )
    if data.boxes:
        prepare_boxes(folder, data, model)
    tokenizer = data.tokenizer or str(folder / "sentencepiece.bpe.model")
    vocabulary = Kosmos2Vocabulary(tokenizer, model.grid_size)
    settings = TaskSettings(vocabulary, data.encode_settings(model), seed, data.shuffle_buffer)
    if not prefix:  # those of new data are meant
        benchmarks.register(folder / "benchmarks", settings)
    rates = data.rates or MIXTURES[data.mixture]
    name = register(data.mixture or OWN, rates, folder, settings, prefix)
    places: dict[str, list[str]] = {}
    for source in rates:
        found = places.setdefault(KINDS[source.split("/")[0]].folder, [])
        found += [place for place in sources(folder, source) if place not in found]
    own.register_measures(places, settings, prefix)
    return name, vocabulary


# As `prepare`, for the old data of `DataConfig.rehearsal`, beside new ones of the same names.
prepare_old = functools.partial(prepare, prefix=OLD)


def prepare_boxes(folder: Path, data: DataConfig, model: Kosmos2Config) -> None:
    """Prepares the COCO file `data.boxes` as `grit/own` below `folder`, unless that is done.

    The first `1 - data.held_out` of the pictures, by chance but always the same ones, are the split
    "train", the others, which may be all, the split "test". Pictures are stored no larger than the
    model needs.

    Raises:
      DataError: it cannot be used, or other data were prepared there.
    """
    rules = PictureRules(SHORT, model.vision.image_size)
    border = 1.0 - data.held_out
    parts = {"train": f"0:{border:.6f}"} if border else {}
    for split, part in (parts | {own.SPLIT: f"{border:.6f}:1"}).items():
        plan = preparation.make_plan(
            "coco",
            [data.boxes],
            str(folder / KINDS["grit"].folder / OWN_BOXES),
            options=CocoOptions(part=part, images=data.pictures or None),
            pictures=rules,
            split=split,
            num_shards=_FILES,
        )
        preparation.convert_all(plan, data.max_skipped)


def register(
    name: str,
    rates: Mapping[str, float],
    folder: Path | str,
    settings: TaskSettings,
    prefix: str = "",
) -> str:
    """Registers a mixture and its tasks, in place of any of the same names.

    Tasks have the names of their rates, "." for "/".

    Args:
      name: of the mixture.
      rates: examples by kind ("text") or source ("text/wikipedia"), in any unit.
      folder: of prepared sources, see the module.
      settings: how documents become examples.
      prefix: of the names of tasks and mixture.

    Returns:
      The mixture's name.

    Raises:
      ConfigError: there is no such kind, or a rate is not above 0.
      DataError: a source is missing.
    """
    tasks = []
    for source, rate in rates.items():
        kind = source.split("/")[0]
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1) or sorted(KINDS)
            raise ConfigError(f"mixture {name!r} names {source!r}; did you mean {near[0]!r}?")
        if not rate > 0:
            raise ConfigError(f"mixture {name!r} has a rate of {rate} for {source!r}: give more")
        task = prefix + source.replace("/", ".")
        KINDS[kind].register(task, sources(folder, source), settings)
        tasks.append((task, float(rate)))
    name = prefix + name
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, tasks)
    return name


def sources(folder: Path | str, source: str) -> list[str]:
    """The prepared folders of a kind or source of `KINDS`.

    Raises:
      DataError: there are none.
    """
    kind, *rest = source.split("/")
    place = epath.Path(folder).joinpath(KINDS[kind].folder, *rest)
    found = [place] if place.exists() else []
    if found and not _is_prepared(place):
        found = sorted(inner for inner in place.iterdir() if _is_prepared(inner))
    if not found:
        raise DataError(
            f"{str(place)!r} holds no prepared source for {source!r}: run tools/prepare_data.py "
            f"with --out {place / 'NAME'}, or use a mixture without it."
        )
    return [str(path) for path in found]


def _is_prepared(folder: epath.Path) -> bool:
    return (folder / "progress").exists() or (folder / "train.json").exists()
