"""Tables of tensor names and shapes: one per foreign format, both directions from the same table.

A row says which parameter of ours (a path in the Flax tree, `{i}` standing for the layer) is
which foreign tensor, how the one turns into the other, and what shape it has in a given config.
Shapes are written for our layout; the foreign shape follows from the transform.

Sources: spec sections 2.1 (Hugging Face, 886 names) and 2.2 (fairseq, 888 names); traps T-10,
T-13 and T-40. Nothing here imports JAX, torch or transformers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter

import numpy as np

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import CheckpointError

# A size is a number or the dotted name of a field or property of Kosmos2Config.
Size = int | str
Shape = tuple[int, ...]

# Axes of our layout taken from the foreign one, and back. Torch's Linear is (out, in) and its
# Conv2d (out, in, height, width); Flax's kernels are (in, out) and (height, width, in, out).
_TO_OURS: dict[str, tuple[int, ...] | None] = {
    "none": None,
    "transpose": (1, 0),
    "conv": (2, 3, 1, 0),
}
_TO_FOREIGN: dict[str, tuple[int, ...] | None] = {
    "none": None,
    "transpose": (1, 0),
    "conv": (3, 2, 0, 1),
}
_STACKS = {"vision": "vision.num_layers", "decoder": "decoder.num_layers"}
_LISTED = 20  # tensors named in one error message


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: `{i}` in both names stands for a layer of `stack`."""

    ours: str
    foreign: str
    transform: str  # "none", "transpose" or "conv"
    sizes: tuple[Size, ...]  # our layout
    stack: str | None = None  # "vision", "decoder" or None for a tensor outside the layers


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of one model: a row with its layer and sizes filled in."""

    ours: str
    foreign: str
    transform: str
    shape: Shape

    @property
    def foreign_shape(self) -> Shape:
        """The shape in the foreign file."""
        axes = _TO_FOREIGN[self.transform]
        return self.shape if axes is None else tuple(self.shape[axis] for axis in axes)

    def our_shape(self, shape: Shape) -> Shape:
        """The shape in our layout of a foreign tensor of any size."""
        axes = _TO_OURS[self.transform]
        return tuple(shape) if axes is None else tuple(shape[axis] for axis in axes)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """The foreign tensor in our layout, contiguous."""
        return _permuted(tensor, _TO_OURS[self.transform])

    def to_foreign(self, parameter: np.ndarray) -> np.ndarray:
        """Our parameter in the foreign layout, contiguous."""
        return _permuted(parameter, _TO_FOREIGN[self.transform])


def _permuted(array: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    return np.ascontiguousarray(array if axes is None else array.transpose(axes))


@dataclasses.dataclass(frozen=True)
class Table:
    """All tensors of one foreign format.

    Attributes:
      name: the format.
      rows: one per tensor or per tensor of a layer.
      head: foreign name of the output projection, a copy of `embedding` (trap T-10): files may
        hold either or both.
      embedding: foreign name of the token embedding.
      ignored: names without influence that some files hold.
      buffers: the format's tensors that are no parameters, as functions of the config.
    """

    name: str
    rows: tuple[Row, ...]
    head: str
    embedding: str
    ignored: tuple[str, ...] = ()
    buffers: Mapping[str, Callable[[Kosmos2Config], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )

    def entries(self, config: Kosmos2Config) -> tuple[Entry, ...]:
        """Every parameter of the model, the head's copy and the buffers not counted."""
        return entries(self.rows, config)

    def shapes(self, config: Kosmos2Config) -> dict[str, Shape]:
        """Name and shape of every tensor of a full file: 886 (888) names for 24 + 24 layers."""
        shapes = {entry.foreign: entry.foreign_shape for entry in self.entries(config)}
        shapes[self.head] = shapes[self.embedding]
        shapes.update({name: make(config).shape for name, make in self.buffers.items()})
        return shapes


@functools.lru_cache(maxsize=8)
def entries(rows: tuple[Row, ...], config: Kosmos2Config) -> tuple[Entry, ...]:
    """The tensors of one model that some rows stand for."""
    found = []
    for row in rows:
        shape = tuple(_size(size, config) for size in row.sizes)
        layers = 1 if row.stack is None else _size(_STACKS[row.stack], config)
        for i in range(layers):
            found.append(Entry(row.ours.format(i=i), row.foreign.format(i=i), row.transform, shape))
    return tuple(found)


def _size(size: Size, config: Kosmos2Config) -> int:
    return size if isinstance(size, int) else attrgetter(size)(config)


def check_tensors(
    found: Mapping[str, Shape], config: Kosmos2Config, table: Table, where: str
) -> None:
    """Compares the names and shapes of a file with those its config asks for.

    Args:
      found: name and shape of every tensor of the file.
      config: the model the file claims to hold.
      table: the format.
      where: what to call the file in the message.

    Raises:
      CheckpointError: one message that lists missing, extra and misshapen tensors, the first 20
        of them by name.
    """
    wanted = table.shapes(config)
    optional = {table.head, *table.buffers}
    if table.head in found:
        optional.add(table.embedding)
    relevant = {name: shape for name, shape in found.items() if name not in table.ignored}
    check_listing(relevant, wanted, where, optional)


def check_listing(
    found: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    where: str,
    optional: Collection[str] = (),
) -> None:
    """Raises one `CheckpointError` that lists what is missing, extra or misshapen."""
    problems = [f"missing {name}" for name in wanted if name not in found and name not in optional]
    for name, shape in found.items():
        if name not in wanted:
            problems.append(f"extra {name}")
        elif tuple(shape) != wanted[name]:
            problems.append(f"{name} has shape {tuple(shape)} instead of {wanted[name]}")
    if problems:
        more = len(problems) - _LISTED
        rest = f" and {more} more" if more > 0 else ""
        raise CheckpointError(
            f"{where} does not fit its config: {', '.join(problems[:_LISTED])}{rest}"
        )


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    """Says whether two float32 arrays are equal, equal NaNs included."""
    return np.array_equal(first.view(np.uint32), second.view(np.uint32))


# The rows ------------------------------------------------------------------------------------


def _plain(ours: str, foreign: str, *sizes: Size) -> list[Row]:
    return [Row(ours, foreign, "none", sizes)]


def _norm(ours: str, foreign: str, size: Size) -> list[Row]:
    return [
        Row(f"{ours}/scale", f"{foreign}.weight", "none", (size,)),
        Row(f"{ours}/bias", f"{foreign}.bias", "none", (size,)),
    ]


def _linear(ours: str, foreign: str, fan_in: Size, fan_out: Size) -> list[Row]:
    return [
        Row(f"{ours}/kernel", f"{foreign}.weight", "transpose", (fan_in, fan_out)),
        Row(f"{ours}/bias", f"{foreign}.bias", "none", (fan_out,)),
    ]


def _attention(ours: str, foreign: str, size: Size) -> list[Row]:
    projections = (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))
    return [
        row
        for mine, theirs in projections
        for row in _linear(f"{ours}/{mine}", f"{foreign}.{theirs}_proj", size, size)
    ]


def _stacked(stack: str, ours: str, foreign: str, *groups: list[Row]) -> list[Row]:
    """Rows of one layer, repeated for every layer of the stack."""
    return [
        dataclasses.replace(
            row, ours=f"{ours}/{row.ours}", foreign=f"{foreign}.{row.foreign}", stack=stack
        )
        for group in groups
        for row in group
    ]


def _joined(*groups: list[Row]) -> tuple[Row, ...]:
    return tuple(row for group in groups for row in group)


_V, _VM = "vision.hidden_size", "vision.mlp_dim"
_D, _DM = "decoder.hidden_size", "decoder.mlp_dim"
_PATCH = "vision.patch_size"
_TOKENS = "vision.num_tokens"
_LATENTS = "resampler.num_latents"


def _resampler(foreign: str) -> list[Row]:
    return [
        *_plain("resampler/latents", f"{foreign}.latent_query", _LATENTS, _D),
        *_linear("resampler/projection", f"{foreign}.dense", _V, _D),
        *_attention("resampler/attention", f"{foreign}.x_attn", _D),
    ]


def _decoder_layers(foreign: str) -> list[Row]:
    return _stacked(
        "decoder",
        "decoder/layers_{i}",
        foreign + ".{i}",
        _norm("attention_norm", "self_attn_layer_norm", _D),
        _attention("attention", "self_attn", _D),
        _norm("attention/inner_norm", "self_attn.inner_attn_ln", _D),
        # Despite its name the norm before the feed-forward network (trap T-06).
        _norm("mlp_norm", "final_layer_norm", _D),
        _linear("mlp/up", "ffn.fc1", _D, _DM),
        _norm("mlp/norm", "ffn.ffn_layernorm", _DM),
        _linear("mlp/down", "ffn.fc2", _DM, _D),
    )


def _patch_embedding(foreign: str) -> list[Row]:
    return [Row("vision/patch_embedding/kernel", foreign, "conv", (_PATCH, _PATCH, 3, _V))]


HUGGING_FACE = Table(
    name="hugging_face",
    rows=_joined(
        _plain("decoder/token_embedding", "text_model.model.embed_tokens.weight",
               "decoder.vocab_size", _D),
        _decoder_layers("text_model.model.layers"),
        _norm("decoder/final_norm", "text_model.model.layer_norm", _D),
        _plain("vision/class_embedding", "vision_model.model.embeddings.class_embedding", _V),
        _patch_embedding("vision_model.model.embeddings.patch_embedding.weight"),
        _plain("vision/position_embedding",
               "vision_model.model.embeddings.position_embedding.weight", _TOKENS, _V),
        _norm("vision/pre_norm", "vision_model.model.pre_layrnorm", _V),  # sic
        _stacked(
            "vision", "vision/layers_{i}", "vision_model.model.encoder.layers.{i}",
            _norm("attention_norm", "layer_norm1", _V),
            _attention("attention", "self_attn", _V),
            _norm("mlp_norm", "layer_norm2", _V),
            _linear("mlp/up", "mlp.fc1", _V, _VM),
            _linear("mlp/down", "mlp.fc2", _VM, _V),
        ),
        _norm("vision/post_norm", "vision_model.model.post_layernorm", _V),
        _resampler("image_to_text_projection"),
    ),
    head="text_model.lm_head.weight",
    embedding="text_model.model.embed_tokens.weight",
    # Buffers that very old exports hold.
    ignored=(
        "text_model.model.embed_positions.weights",
        "vision_model.model.embeddings.position_ids",
    ),
)  # fmt: skip


def sope_scale(config: Kosmos2Config) -> np.ndarray:
    """The unused xPos buffer of fairseq files: (2k + 0.4 d) / (1.4 d) for heads of size d.

    Returns:
      float32 of shape (d // 2,); (2k + 25.6) / 89.6 for the released d = 64 (spec section 2.2).
    """
    head = config.decoder.hidden_size // config.decoder.num_heads
    steps = np.arange(0, head, 2, dtype=np.float32)
    return (steps + np.float32(0.4 * head)) / np.float32(1.4 * head)


FAIRSEQ = Table(
    name="fairseq",
    rows=_joined(
        _plain("decoder/token_embedding", "gpt_model.decoder.embed_tokens.weight",
               "decoder.vocab_size", _D),
        _decoder_layers("gpt_model.decoder.layers"),
        _norm("decoder/final_norm", "gpt_model.decoder.layer_norm", _D),
        _plain("vision/class_embedding", "img_model.visual.class_embedding", _V),
        _patch_embedding("img_model.visual.conv1.weight"),
        _plain("vision/position_embedding", "img_model.visual.positional_embedding", _TOKENS, _V),
        _norm("vision/pre_norm", "img_model.visual.ln_pre", _V),
        _stacked(
            "vision", "vision/layers_{i}", "img_model.visual.transformer.resblocks.{i}",
            _norm("attention_norm", "ln_1", _V),
            _attention("attention", "ts_attn", _V),
            _norm("mlp_norm", "ln_2", _V),
            _linear("mlp/up", "mlp.c_fc", _V, _VM),
            _linear("mlp/down", "mlp.c_proj", _VM, _V),
        ),
        _norm("vision/post_norm", "img_model.visual.ln_post", _V),
        _resampler("img_connector"),
    ),
    head="gpt_model.decoder.output_projection.weight",
    embedding="gpt_model.decoder.embed_tokens.weight",
    buffers={
        # Only marks a device; its value means nothing.
        "gpt_model.decoder.embed_positions._float_tensor": lambda config: np.zeros(1, np.float32),
        "gpt_model.decoder.self_attn_sope.scale": sope_scale,
    },
)  # fmt: skip


def num_parameters(config: Kosmos2Config) -> int:
    """Parameters of a model, the tied head counted once: 1,664,485,376 for the released one."""
    return sum(math.prod(entry.shape) for entry in HUGGING_FACE.entries(config))
