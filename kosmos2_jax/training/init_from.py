"""A run that begins with the values of a checkpoint: all of them, or those it has.

What is told of `vision/layers_3/...` holds whether or not the model scans its layers. Values go
from the file straight into their shardings, one array at a time.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import CheckpointError
from kosmos2_jax.grounding import Kosmos2Vocabulary
from kosmos2_jax.interop import clip, convert
from kosmos2_jax.interop.files import in_bucket
from kosmos2_jax.interop.layout import flatten, nest
from kosmos2_jax.interop.names import HUGGING_FACE, Shape
from kosmos2_jax.training.run_config import InitFromConfig

TOKEN_EMBEDDING = "decoder/token_embedding"
POSITION_EMBEDDING = "vision/position_embedding"
_LISTED = 10  # names in one message
_STACKED = re.compile(r"(vision|decoder)/layers/(.*)")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters of a checkpoint.

    Attributes:
      kind: what it is, in words.
      params: by flat path, float32, one subtree per layer; read when asked for.
      shapes: of `params`.
      unused: what else the file holds.
      config: of a whole model; None for a vision tower alone.
      vocabulary: of a whole model that has its tokenizer.
    """

    kind: str
    params: Mapping[str, np.ndarray]
    shapes: Mapping[str, Shape]
    unused: tuple[str, ...] = ()
    config: Kosmos2Config | None = None
    vocabulary: Kosmos2Vocabulary | None = None


@dataclasses.dataclass(frozen=True)
class InitReport:
    """What became of every parameter of the model and every tensor of the checkpoint.

    Attributes:
      source: the checkpoint and its kind.
      matched: paths of parameters that have the checkpoint's values.
      resized: how those were fitted that have another size there, by path.
      initial: paths of parameters that stay at their initial values.
      skipped: names of the checkpoint's tensors that are not used.
      notes: what else to know.
    """

    source: str
    matched: tuple[str, ...]
    resized: Mapping[str, str]
    initial: tuple[str, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"begins with {self.source}",
            f"  matched: {_counted(self.matched)}",
            *(f"  resized: {path}: {how}" for path, how in self.resized.items()),
            f"  initial values: {_counted(self.initial)}",
            f"  skipped in the checkpoint: {_counted(self.skipped)}",
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def init_params(
    params: Mapping[str, Any],
    config: Kosmos2Config,
    vocabulary: Kosmos2Vocabulary,
    settings: InitFromConfig,
) -> tuple[dict[str, Any], InitReport]:
    """Puts the values of a checkpoint in place of initial ones.

    Args:
      params: fresh, on their devices; those replaced are given up.
      config: of their model.
      vocabulary: of the run, which tells what the rows of the token embedding stand for.
      settings: which checkpoint, and what may be missing.

    Returns:
      The parameters in the same shardings, and what happened.

    Raises:
      CheckpointError: it cannot be read, lacks parameters that `allow_missing` does not name, has
        them in sizes that cannot be fitted, or computes with other heads.
    """
    source = open_weights(settings.path, config)
    found, plan = {}, _Plan(source, config, vocabulary, settings)
    for path, leaf in flatten(params).items():
        found[path] = _placed(path, leaf, plan)
    return nest(found), plan.report()


def open_weights(path: str, config: Kosmos2Config) -> Weights:
    """A checkpoint of any kind; tensors stay on disk until asked for.

    A folder of ours may lie in a bucket.

    Raises:
      CheckpointError: it cannot be read.
    """
    local = Path(path)
    if not in_bucket(path) and local.exists() and clip.is_clip(local):
        tower = clip.read_tower(local, config)
        kind = f"CLIP's vision tower, {tower.layout}'s layout"
        return Weights(kind, tower.params, tower.shapes, tower.unused)
    kind = convert.detect_format(path)
    checkpoint = convert.open_checkpoint(path)
    entries = HUGGING_FACE.entries(checkpoint.config)
    return Weights(
        f"{kind} checkpoint",
        flatten(checkpoint.params),
        {entry.ours: entry.shape for entry in entries},
        config=checkpoint.config,
        vocabulary=checkpoint.vocabulary,
    )


class _Plan:
    """Where the value of each path comes from, and what has come of it so far."""

    def __init__(
        self,
        source: Weights,
        config: Kosmos2Config,
        vocabulary: Kosmos2Vocabulary,
        settings: InitFromConfig,
    ) -> None:
        self._source, self._config, self._settings = source, config, settings
        self._vocabulary = vocabulary
        self._notes = _differences(source, config, settings.path)
        self._matched: list[str] = []
        self._resized: dict[str, str] = {}
        self._initial: list[str] = []
        self._missing: list[str] = []
        self._used: set[str] = set()
        self._unmatched = [pattern for pattern, _ in settings.assignments]

    def value(self, path: str, shape: Shape) -> tuple[np.ndarray, np.ndarray] | None:
        """Value of a parameter and which of its rows are known, or None if it has none."""
        name = self._assigned(path)
        if name not in self._source.shapes:
            self._initial.append(path)
            if name is not None and not re.fullmatch(self._settings.allow_missing, path):
                self._missing.append(path if name == path else f"{path} (as {name})")
            return None
        self._used.add(name)
        if path == TOKEN_EMBEDDING:
            return self._rows(path, name, shape)
        theirs = self._source.shapes[name]
        if theirs == shape:
            self._matched.append(path)
            return self._source.params[name], np.ones(1, bool)
        if path == POSITION_EMBEDDING and theirs[1:] == shape[1:]:
            self._resized[path] = f"{theirs[0] - 1} to {shape[0] - 1} patches, bicubic"
            return resize_positions(self._source.params[name], shape[0]), np.ones(1, bool)
        raise CheckpointError(
            f"{self._settings.path}: {name} has shape {theirs}, but {path} needs {shape}; to leave "
            f"it at its initial value, set init_from.assignments to (({path!r}, ''),)"
        )

    def report(self) -> InitReport:
        """What happened.

        Raises:
          CheckpointError: parameters are missing, or a pattern matched none.
        """
        if self._unmatched:
            raise CheckpointError(
                f"init_from.assignments: {self._unmatched[0]!r} matches no parameter; paths look "
                f"like {POSITION_EMBEDDING} and vision/layers_0/mlp/up/kernel"
            )
        if self._missing:
            raise CheckpointError(
                f"{self._settings.path} ({self._source.kind}) lacks {_listed(self._missing)}: set "
                "init_from.allow_missing to a regular expression of what may keep its initial value"
            )
        left = [name for name in self._source.shapes if name not in self._used]
        return InitReport(
            f"{self._settings.path} ({self._source.kind})",
            tuple(self._matched),
            self._resized,
            tuple(self._initial),
            (*left, *self._source.unused),
            tuple(self._notes),
        )

    def _assigned(self, path: str) -> str | None:
        for pattern, replacement in self._settings.assignments:
            if match := re.fullmatch(pattern, path):
                self._unmatched = [other for other in self._unmatched if other != pattern]
                return match.expand(replacement) or None
        return path

    def _rows(self, path: str, name: str, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        """The token embedding: each token of both vocabularies keeps its row."""
        table = self._source.params[name]
        if table.shape[1:] != shape[1:]:
            raise CheckpointError(
                f"{self._settings.path}: {name} is {table.shape[1]} wide, this model {shape[1]}"
            )
        ours, theirs = same_tokens(self._vocabulary, self._source.vocabulary, len(table))
        values, known = np.zeros(shape, np.float32), np.zeros(shape[0], bool)
        values[ours], known[ours] = table[theirs], True
        size = self._vocabulary.vocab_size
        if len(ours) == size == len(table):
            self._matched.append(path)
        else:
            self._resized[path] = (
                f"{len(ours):,} of {size:,} tokens known, the other {size - len(ours):,} keep "
                f"their initial rows; {len(table) - len(ours):,} of the checkpoint's are skipped"
            )
        return values, known


def _placed(path: str, leaf: jax.Array, plan: _Plan) -> jax.Array:
    """The values of a leaf, of one layer or of all, in its sharding."""
    match = _STACKED.fullmatch(path)
    if match is None:
        told = plan.value(path, leaf.shape)
        return leaf if told is None else _put(leaf, *told)
    values, known = None, np.zeros(leaf.shape[0], bool)
    for layer in range(leaf.shape[0]):
        told = plan.value(f"{match[1]}/layers_{layer}/{match[2]}", leaf.shape[1:])
        if told is not None:
            values = np.zeros(leaf.shape, np.float32) if values is None else values
            values[layer], known[layer] = told[0], True
    return leaf if values is None else _put(leaf, values, known)


def _put(leaf: jax.Array, values: np.ndarray, known: np.ndarray) -> jax.Array:
    """`values` where `known` along the first axis, else the leaf's own; each device its part."""
    values = values.astype(leaf.dtype, copy=False)
    placed = jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: values[index])
    if known.all():
        return placed
    mask = known.reshape(-1, *[1] * (leaf.ndim - 1))
    choose = jax.jit(jnp.where, out_shardings=leaf.sharding)
    return choose(mask, placed, leaf)


def same_tokens(
    ours: Kosmos2Vocabulary, theirs: Kosmos2Vocabulary | None, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the same tokens in two vocabularies.

    Where a checkpoint has no tokenizer, its ids are taken to be ours as far as they go, as they
    are for Kosmos-1 and Kosmos-2. Cells of another grid are other places, thus other tokens.

    Args:
      ours: the run's.
      theirs: the checkpoint's, if it has one.
      rows: of the checkpoint's token embedding.
    """
    if theirs is None or theirs.tokens == ours.tokens:
        both = np.arange(min(ours.vocab_size, rows))
        return both, both
    ids = {token: i for i, token in reversed(list(enumerate(theirs.tokens)))}
    pairs = [
        (i, ids[token])
        for i, token in enumerate(ours.tokens)
        if token in ids and not (ours.is_location(i) and ours.grid_size != theirs.grid_size)
    ]
    mine, other = np.array(pairs, np.int64).reshape(-1, 2).T
    return mine, other


def resize_positions(table: np.ndarray, tokens: int) -> np.ndarray:
    """CLIP's position embedding for pictures of another size, as open_clip resizes it.

    The class token's stays; those of the patches, a square, are resized as a picture is: bicubic,
    with antialiasing where it becomes smaller.

    Args:
      table: float32 [1 + g * g, D].
      tokens: rows wanted, 1 + h * h.

    Returns:
      float32 [1 + h * h, D].
    """
    old, new = (round((count - 1) ** 0.5) for count in (len(table), tokens))
    square = jnp.asarray(table[1:]).reshape(old, old, -1)
    resized = jax.image.resize(square, (new, new, table.shape[1]), "cubic", antialias=True)
    return np.concatenate([table[:1], np.asarray(resized).reshape(new * new, -1)])


def _differences(source: Weights, config: Kosmos2Config, path: str) -> list[str]:
    """Notes on what shapes do not tell.

    Raises:
      CheckpointError: heads that would read the values otherwise than they were written.
    """
    if source.config is None:
        return []
    for part in ("vision", "decoder"):
        theirs, ours = getattr(source.config, part), getattr(config, part)
        if theirs.num_heads != ours.num_heads:
            raise CheckpointError(
                f"{path} has {theirs.num_heads} heads where model.{part}.num_heads is "
                f"{ours.num_heads}; set it to the checkpoint's"
            )
    theirs, ours = source.config.decoder.position, config.decoder.position
    if theirs != ours:
        return [f"the checkpoint has {theirs} positions, the model {ours}"]
    return []


def _counted(paths: Sequence[str]) -> str:
    """Number of names by their beginning: "vision 391, decoder 2"."""
    if not paths:
        return "none"
    parts = collections.Counter(re.split(r"[./]", path)[0] for path in paths)
    return f"{len(paths)} (" + ", ".join(f"{part} {n}" for part, n in parts.items()) + ")"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
