"""Log-likelihoods of given continuations, and the most likely boxes of a phrase.

The continuations of a prompt become a trie. The prompt is read once; then every node that has
children is read once, all in one row of the cache, where each sees the prompt and its own
ancestors only. So a thousand class names cost as many tokens as they have different beginnings,
and the best of them is found exactly.

    scores = score_continuations(config, params, [prompt], [[ids_of_yes, ids_of_no]])
    best = max(range(2), key=lambda n: scores[0][n].sum())

Letters: B prompts, L their padded length, C nodes that are read together, Q questions about them,
T slots of the cache, E hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import MarkupError
from kosmos2_jax.grounding.boxes import Box, cells_to_box, iou
from kosmos2_jax.inference.decoding import read_prompts
from kosmos2_jax.inference.prompt_batch import (
    Prompt,
    PromptBatch,
    batch_prompts,
    widen_batch,
)
from kosmos2_jax.models.decoder import Cache
from kosmos2_jax.models.kosmos2 import Kosmos2

_CHUNK = 64
_ROOT = -1


class Trie:
    """Continuations of one prompt, in which equal beginnings are one.

    Attributes:
      tokens: of the nodes; parents come before their children.
      parents: number of each node's parent, -1 for the prompt.
      paths: the nodes of each continuation.
      reads: the nodes that have children: only they need be read.
    """

    def __init__(self, continuations: Sequence[Sequence[int]]) -> None:
        """Of continuations that are not empty."""
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.paths: list[list[int]] = []
        known: dict[tuple[int, int], int] = {}
        for continuation in continuations:
            node, path = _ROOT, []
            for token in continuation:
                key = node, int(token)
                if key not in known:
                    known[key] = len(self.tokens)
                    self.tokens.append(key[1])
                    self.parents.append(node)
                node = known[key]
                path.append(node)
            self.paths.append(path)
        self.reads = sorted(set(self.parents) - {_ROOT})

    def ancestry(self) -> tuple[np.ndarray, np.ndarray]:
        """Which of `reads` each of them sees, itself included, and how many those are."""
        places = {node: place for place, node in enumerate(self.reads)}
        sees = np.eye(len(self.reads), dtype=bool)
        for place, node in enumerate(self.reads):
            if self.parents[node] != _ROOT:
                sees[place] |= sees[places[self.parents[node]]]
        return sees, sees.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Spread:
    """How the prompts of a batch lie over devices and processes; by default over one device.

    Of several processes each gives prompts of its own, as many as the others, and gets their
    scores.

    Attributes:
      agree: the largest of the numbers that all processes give, one by one.
      place: arrays of own rows as arrays over all devices.
      fetch: an array over all devices as one of own rows.
    """

    agree: Callable[[list[int]], list[int]] = list
    place: Callable[[dict[str, np.ndarray]], dict[str, Any]] = dict
    fetch: Callable[[Array], np.ndarray] = np.asarray


def score_continuations(
    config: Kosmos2Config,
    params: Any,
    prompts: Sequence[Prompt],
    continuations: Sequence[Sequence[Sequence[int]]],
    spread: Spread = Spread(),
) -> list[list[np.ndarray]]:
    """Log-probability of each token of each continuation of each prompt, natural logarithm.

    Args:
      config: of the model.
      params: of the model.
      prompts: which are read together.
      continuations: token ids, for each prompt at least one. End them with `</s>` where one may
        be the beginning of another.
      spread: over which devices.

    Returns:
      For each prompt and each of its continuations float32 [tokens]; sums are log-likelihoods.

    Raises:
      MarkupError: a continuation is empty, or too long with its prompt.
    """
    _check(config, prompts, continuations)
    tries = [Trie(own) for own in continuations]
    batch = batch_prompts(prompts, max_length=config.decoder.max_length)
    chunks = -(-max(len(trie.reads) for trie in tries) // _CHUNK)
    images = 0 if batch.images is None else batch.images.shape[1]
    places, images, chunks = spread.agree([batch.tokens.shape[1], images, chunks])
    batch = widen_batch(batch, places, images, config.vision.image_size)
    # Powers of two, so that tries of like size share programs.
    slots = _CHUNK * (1 << (chunks - 1).bit_length()) if chunks else 0
    mask, positions = _visible(tries, batch, slots)
    ranges = [range(n * _CHUNK, (n + 1) * _CHUNK) for n in range(-1, chunks)]
    asked = [[_children(trie, here) for trie in tries] for here in ranges]
    counts = spread.agree([_CHUNK * -(-max(map(len, own)) // _CHUNK) for own in asked])
    log_probs = [np.zeros(len(trie.tokens), np.float32) for trie in tries]
    with jax.default_matmul_precision("highest"):
        given = {name: array for name, array in batch._asdict().items() if array is not None}
        placed = batch._replace(**spread.place(given))
        hidden, cache = _read(config, places + slots, params, placed)
        for here, rows, count in zip(ranges, asked, counts, strict=True):
            if here.start >= 0:
                cut = slice(here.start, here.stop)
                nodes = {
                    "tokens": _tokens(tries, [trie.reads[cut] for trie in tries], _CHUNK),
                    "positions": positions[:, cut],
                    "mask": mask[:, cut],
                }
                start = np.int32(places + here.start)
                hidden, cache = _read_nodes(config, params, cache, start, **spread.place(nodes))
            questions = {
                "parents": _padded([[place for place, _ in own] for own in rows], count),
                "tokens": _tokens(tries, [[node for _, node in own] for own in rows], count),
            }
            values = spread.fetch(_log_probs(config, params, hidden, **spread.place(questions)))
            for row, own in enumerate(rows):
                log_probs[row][[node for _, node in own]] = values[row, : len(own)]
    return [[own[path] for path in trie.paths] for trie, own in zip(tries, log_probs, strict=True)]


class ScoredBox(NamedTuple):
    """A box that a model may give for a phrase.

    Attributes:
      box: fractions of the picture.
      score: probability of its two location tokens, 0..1.
      marginal_score: the same summed over the boxes whose corners are in the same or in touching
        cells.
    """

    box: Box
    score: float
    marginal_score: float


def top_boxes(
    config: Kosmos2Config, params: Any, prompt: Prompt, count: int, max_iou: float = 0.7
) -> list[ScoredBox]:
    """The most likely boxes after a prompt that ends with `<object>`, best first.

    The 64 most likely first corners and all second corners that are not above or left of them.

    Args:
      config: of the model.
      params: of the model.
      prompt: such as `<grounding><phrase> a dog</phrase><object>` after a picture.
      count: boxes at most.
      max_iou: a box that overlaps a better one by more is left out; 1 keeps all.

    Raises:
      MarkupError: the prompt is too long.
    """
    grid = config.grid_size
    _check(config, [prompt], [[[0, 0]]])
    batch = batch_prompts([prompt], max_length=config.decoder.max_length)
    places = batch.tokens.shape[1]
    beams = min(_CHUNK, grid**2)
    with jax.default_matmul_precision("highest"):
        hidden, cache = _read(config, places + beams, params, batch)
        first = np.asarray(_location_log_probs(config, params, hidden), np.float64)[0, 0]
        corners = np.argsort(-first, kind="stable")[:beams]
        first_id = config.decoder.vocab_size - grid**2
        mask = np.zeros((1, beams, places + beams), bool)
        mask[..., : len(prompt.ids)] = True
        mask[0, :, places:] = np.eye(beams)
        hidden, _ = _read_nodes(
            config, params, cache, np.int32(places), (corners + first_id)[None].astype(np.int32),
            np.full((1, beams), len(prompt.ids), np.int32), mask,
        )  # fmt: skip
        second = np.asarray(_location_log_probs(config, params, hidden), np.float64)[0]
    joint = np.exp(first[corners][:, None] + second)
    x, y = np.arange(grid**2) % grid, np.arange(grid**2) // grid
    joint[(x[None] < x[corners][:, None]) | (y[None] < y[corners][:, None])] = 0.0
    near = (abs(x[:, None] - x) <= 1) & (abs(y[:, None] - y) <= 1)
    marginal = near[np.ix_(corners, corners)] @ joint @ near
    found: list[ScoredBox] = []
    for index in np.argsort(-joint, axis=None, kind="stable"):
        row, cell = divmod(int(index), grid**2)
        if len(found) == count or not joint[row, cell]:
            break
        box = cells_to_box(int(corners[row]), cell, grid)
        if all(iou(box, other.box) <= max_iou for other in found):
            found.append(ScoredBox(box, float(joint[row, cell]), float(marginal[row, cell])))
    return found


def _check(
    config: Kosmos2Config,
    prompts: Sequence[Prompt],
    continuations: Sequence[Sequence[Sequence[int]]],
) -> None:
    for prompt, own in zip(prompts, continuations, strict=True):
        if not own or min(map(len, own)) == 0:
            raise MarkupError("There is nothing to score: give at least one token for each answer.")
        longest, limit = len(prompt.ids) + max(map(len, own)), config.decoder.max_length
        if longest > limit:
            raise MarkupError(
                f"Prompt and answer have {longest} tokens, but the model reads at most {limit}: "
                "shorten them."
            )


def _visible(
    tries: Sequence[Trie], batch: PromptBatch, slots: int
) -> tuple[Bool[np.ndarray, "B N T"], Int[np.ndarray, "B N"]]:
    """What each node that is read sees, and its position in its text; N is `slots`."""
    rows, places = batch.tokens.shape
    mask = np.zeros((rows, slots, places + slots), bool)
    mask[:, :, places:] = np.eye(slots, dtype=bool)  # padding sees itself
    positions = np.zeros((rows, slots), np.int32)
    for row, trie in enumerate(tries):
        sees, depths = trie.ancestry()
        count, length = len(trie.reads), int(batch.lengths[row])
        mask[row, :count, :length] = True
        mask[row, :count, places : places + count] = sees
        positions[row, :count] = length - 1 + depths
    return mask, positions


def _children(trie: Trie, here: range) -> list[tuple[int, int]]:
    """(place of the parent in the chunk, node) of all nodes whose parent is read there."""
    if here.start < 0:
        return [(0, node) for node, parent in enumerate(trie.parents) if parent == _ROOT]
    places = {node: n for n, node in enumerate(trie.reads[here.start : here.stop])}
    return [(places[parent], node) for node, parent in enumerate(trie.parents) if parent in places]


def _tokens(
    tries: Sequence[Trie], nodes: Sequence[Sequence[int]], length: int
) -> Int[np.ndarray, "B N"]:
    """Of some nodes of each trie."""
    rows = [[trie.tokens[node] for node in own] for trie, own in zip(tries, nodes, strict=True)]
    return _padded(rows, length)


def _padded(rows: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, "B N"]:
    filled = np.zeros((len(rows), length), np.int32)
    for row, values in enumerate(rows):
        filled[row, : len(values)] = values
    return filled


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(
    config: Kosmos2Config, slots: int, params: Any, prompts: PromptBatch
) -> tuple[Float[Array, "B 1 E"], Cache]:
    """The last hidden state of each prompt, and the cache."""
    hidden, cache = read_prompts(config, params, *prompts, cache_length=slots)
    return jnp.take_along_axis(hidden, (prompts.lengths - 1)[:, None, None], axis=1), cache


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read_nodes(
    config: Kosmos2Config,
    params: Any,
    cache: Cache,
    start: Int[Array, ""],
    tokens: Int[Array, "B C"],
    positions: Int[Array, "B C"],
    mask: Bool[Array, "B C T"],
) -> tuple[Float[Array, "B C E"], Cache]:
    slots = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    return Kosmos2(config).apply(
        {"params": params}, tokens, slots, cache, positions=positions, mask=mask, method="extend"
    )


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(
    config: Kosmos2Config,
    params: Any,
    hidden: Float[Array, "B C E"],
    parents: Int[Array, "B Q"],
    tokens: Int[Array, "B Q"],
) -> Float[Array, "B Q"]:
    """Of tokens, each after one of the hidden states."""
    logits = Kosmos2(config).apply({"params": params}, hidden, method="logits")
    row = jnp.arange(len(tokens))[:, None]
    found = logits[row, parents, tokens] - jax.nn.logsumexp(logits, axis=-1)[row, parents]
    return jnp.minimum(found, 0.0)  # rounding may say that a token is more than certain


@functools.partial(jax.jit, static_argnums=0)
def _location_log_probs(
    config: Kosmos2Config, params: Any, hidden: Float[Array, "B C E"]
) -> Float[Array, "B C G*G"]:
    """Of every location token after each hidden state."""
    logits = Kosmos2(config).apply({"params": params}, hidden, method="logits")
    end = config.decoder.vocab_size
    own = logits[..., end - config.grid_size**2 : end]
    return own - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
