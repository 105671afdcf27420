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
from kosmos2_jax.data.data_config import DataConfig
from kosmos2_jax.data.document_tasks import TaskSettings
from kosmos2_jax.data.skips import DataError
from kosmos2_jax.errors import ConfigError
from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

from . import benchmarks, captions, grit, instructions, interleaved, text


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
}

# Samples of an update.
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
}

# The name of a mixture that is made of rates.
OWN = "own_mixture"


def prepare(
    folder: Path, data: DataConfig, model: Kosmos2Config, seed: int
) -> tuple[str, Kosmos2Vocabulary]:
    """Registers the tasks and the mixture of a run.

    Args:
      folder: of prepared sources, see the module.
      data: `mixture` names one of `MIXTURES`, or `rates` are one.
      model: whose pictures and grid the examples are for.
      seed: of what is left to chance in encoding.

    Returns:
      The mixture's name, and the vocabulary.

    Raises:
      ConfigError: there is no such mixture, or no such kind in it.
      DataError: a source is missing.
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
    tokenizer = data.tokenizer or str(folder / "sentencepiece.bpe.model")
    vocabulary = Kosmos2Vocabulary(tokenizer, model.grid_size)
    settings = TaskSettings(vocabulary, data.encode_settings(model), seed, data.shuffle_buffer)
    benchmarks.register(folder / "benchmarks", settings)
    rates = data.rates or MIXTURES[data.mixture]
    return register(data.mixture or OWN, rates, folder, settings), vocabulary


def register(
    name: str, rates: Mapping[str, float], folder: Path | str, settings: TaskSettings
) -> str:
    """Registers a mixture and its tasks, in place of any of the same names.

    Tasks have the names of their rates, "." for "/".

    Args:
      name: of the mixture.
      rates: examples by kind ("text") or source ("text/wikipedia"), in any unit.
      folder: of prepared sources, see the module.
      settings: how documents become examples.

    Returns:
      `name`.

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
        task = source.replace("/", ".")
        KINDS[kind].register(task, sources(folder, source), settings)
        tasks.append((task, float(rate)))
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
