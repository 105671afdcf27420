"""Floating-point operations of one update by formula, and what chips can do (for MFU).

What a training step must multiply and add, whatever the compiler makes of it: recomputed
activations, padded vocabulary rows, optimiser and element-wise work do not count, as in PaLM's
MFU (Chowdhery et al. 2022, appendix B). XLA's own `cost_analysis` would count a scanned layer
once. A multiplication and its addition are two operations.

Letters: R rows, L tokens of a row, E decoder width, M its MLP, N decoder layers, V vocabulary;
I pictures, T vision tokens a picture, D vision width, F vision MLP, K vision layers, P latents.

    decoder     R L N (8 E^2 + 4 E M)   and R N 2 L^2 E for causal attention (half of L x L)
    head        R L 2 E V
    vision      I K T (8 D^2 + 4 D F)   and I K 4 T^2 D, and I (T - 1) 6 p^2 D for p x p patches
    resampler   I (2 T D E + 4 P E^2 + 4 (T + P) E^2)   and I 4 P (T + P) E

forward. Rows count as full and as one example, so that padding and the pairs of tokens that
packing forbids look used: give the tokens of the rows you fill if that matters. A gradient
costs the forward products again once for the weights, if the part is trained, and once for their
inputs, if those depend on anything trained; the products of attention have two inputs. So a
trained part costs three times its forward pass (patches twice), and a frozen vision tower once: it
is counted, not left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from kosmos2_jax.config import Kosmos2Config
from kosmos2_jax.errors import ConfigError

# In the order of the data; names as in the tree of parameters. The decoder has the head and the
# token embedding with it.
PARTS = ("vision", "resampler", "decoder")


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """Operations of one update by part of the model, gradients included."""

    vision: int
    resampler: int
    decoder: int
    head: int

    @property
    def total(self) -> int:
        """Of the whole update."""
        return self.vision + self.resampler + self.decoder + self.head


def model_flops(
    config: Kosmos2Config,
    rows: int,
    length: int,
    images: int,
    trained: Collection[str] = PARTS,
) -> ModelFlops:
    """Operations of one update, by the formula at the top of this file.

    Args:
      config: the architecture.
      rows: of the update, over all devices and micro-batches.
      length: tokens of a row.
      images: pictures of the update in all.
      trained: those of `PARTS` that have any trained parameter; none for a forward pass.

    Raises:
      ConfigError: a part that the model does not have.
    """
    if unknown := set(trained) - set(PARTS):
        raise ConfigError(f"unknown parts {sorted(unknown)}; known: {', '.join(PARTS)}")
    vision, decoder = config.vision, config.decoder
    narrow, wide = vision.hidden_size, decoder.hidden_size
    seen, soft = vision.num_tokens, config.resampler.num_latents

    def gradients(part: str) -> int:
        """Whether a gradient reaches what goes into the products of a part."""
        return any(name in trained for name in PARTS[: PARTS.index(part) + 1])

    def linear(part: str, operations: int, inputs: bool = True) -> int:
        return operations * (1 + (part in trained) + (inputs and gradients(part)))

    def attention(part: str, operations: int) -> int:
        return operations * (1 + 2 * gradients(part))

    tower = vision.num_layers * seen * (8 * narrow**2 + 4 * narrow * vision.mlp_dim)
    patches = 6 * (seen - 1) * vision.patch_size**2 * narrow
    layers = decoder.num_layers * length * (8 * wide**2 + 4 * wide * decoder.mlp_dim)
    return ModelFlops(
        vision=images
        * (
            linear("vision", tower)
            + linear("vision", patches, inputs=False)  # pixels need no gradient
            + attention("vision", 4 * vision.num_layers * seen**2 * narrow)
        ),
        resampler=images
        * (
            linear("resampler", 2 * seen * narrow * wide, inputs="vision" in trained)
            + linear("resampler", 4 * soft * wide**2 + 4 * (seen + soft) * wide**2)
            + attention("resampler", 4 * soft * (seen + soft) * wide)
        ),
        decoder=rows
        * (
            linear("decoder", layers)
            + attention("decoder", 2 * decoder.num_layers * length**2 * wide)
        ),
        head=rows * linear("decoder", 2 * length * wide * decoder.vocab_size),
    )


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device can do, by its vendor's data sheet.

    Attributes:
      name: as in topologies, "v5e".
      kinds: beginnings of JAX's `device_kind`, in lower case.
      peak_flops: dense bfloat16 operations a second.
      memory: bytes of HBM (on GPUs, of whatever memory).
      bandwidth: bytes a second from and to it.
      links: ways to other chips of the slice or host that can send at once.
      link_bandwidth: bytes a second that one of them sends.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: float
    memory: int
    bandwidth: float
    links: int = 0
    link_bandwidth: float = 0.0


_GIB = 1024**3

# TPUs: cloud.google.com/tpu/docs/system-architecture-tpu-vm; one-way link speeds from "How to
# Scale Your Model" (Austin et al. 2025), table of chapter 2. GPUs: NVIDIA's data sheets, dense.
CHIPS: tuple[Chip, ...] = (
    Chip("v4", ("tpu v4",), 275e12, 32 * _GIB, 1.228e12, 6, 45e9),
    Chip("v5e", ("tpu v5 lite", "tpu v5e"), 197e12, 16 * _GIB, 0.819e12, 4, 45e9),
    Chip("v5p", ("tpu v5p", "tpu v5"), 459e12, 95 * _GIB, 2.765e12, 6, 90e9),
    Chip("v6e", ("tpu v6 lite", "tpu v6e"), 918e12, 32 * _GIB, 1.64e12, 4, 90e9),
    Chip("a100", ("nvidia a100",), 312e12, 80 * _GIB, 2.039e12, 1, 300e9),
    Chip("h100", ("nvidia h100",), 989e12, 80 * _GIB, 3.35e12, 1, 450e9),
    Chip("h200", ("nvidia h200",), 989e12, 141 * 10**9, 4.8e12, 1, 450e9),
    Chip("l4", ("nvidia l4",), 121e12, 24 * _GIB, 0.3e12),
    Chip("rtx4090", ("nvidia geforce rtx 4090",), 165e12, 24 * _GIB, 1.008e12),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`, or None for one that is not in `CHIPS`, as a CPU."""
    kind = device_kind.lower()
    # "TPU v5 lite" begins as "TPU v5" does: the longest beginning decides. An L40 is no L4.
    fitting = [
        (len(start), chip)
        for chip in CHIPS
        for start in chip.kinds
        if kind.startswith(start) and not kind[len(start) :][:1].isalnum()
    ]
    return max(fitting, key=lambda pair: pair[0], default=(0, None))[1]


def model_flops_utilisation(flops: float, seconds: float, devices: int, chip: Chip) -> float:
    """MFU: the share of the chips' peak that the model's own operations take.

    Args:
      flops: of one update, `ModelFlops.total`.
      seconds: that it took.
      devices: over which it was spread.
      chip: what they are.
    """
    return flops / (seconds * devices * chip.peak_flops)
