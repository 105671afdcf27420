"""Architecture of a Kosmos-2 model as frozen dataclasses.

Every default is that of the released model; the paragraph of the published code or paper it
comes from is cited beside it ("code": the official fairseq code; "HF": transformers' port;
"K1", "K2": the Kosmos-1 and Kosmos-2 papers).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kosmos2_jax.errors import ConfigError, nearest
from kosmos2_jax.ranges import COUNT, check_ranges

SINUSOIDAL = "sinusoidal"
XPOS = "xpos"

# What computes self-attention, see `kosmos2_jax.models.attention`.
AUTO, XLA, SPLASH, TRITON, CUDNN = "auto", "xla", "splash", "triton", "cudnn"
ATTENTIONS = (AUTO, XLA, SPLASH, TRITON, CUDNN)
# What layers keep for the gradient, see `kosmos2_jax.models.layers.keep`.
NONE, MINIMAL, ATTENTION, FULL = "none", "minimal", "attention", "full"
REMATS = (NONE, MINIMAL, ATTENTION, FULL)

# CLIP's normalisation of RGB values in 0..1 (HF `CLIPImageProcessor`).
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The CLIP ViT-L/14 tower (code: open_clip `ViT-L-14`; HF `vision_config`)."""

    image_size: int = 224  # pixels a side, K2 section 3.1
    patch_size: int = 14  # pixels a side, ViT-L/14
    hidden_size: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_dim: int = 4096
    layer_norm_epsilon: float = 1e-5  # torch's default; Flax's is 1e-6

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Class token and patches (257 for ViT-L/14 at 224)."""
        return self.grid * self.grid + 1


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """The connector from vision to language (code: `XConnector`; K1 section 2.2)."""

    num_latents: int = 64  # soft tokens a picture, K1 table 19
    attention_dropout: float = 0.1  # code: fairseq attention honours it here
    latent_init_std: float = 1.0  # code: torch.randn


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The Magneto (sub-LN) language decoder (K1 table 19; code: `unigptmodel_xl`)."""

    vocab_size: int = 65037  # 64,007 of Kosmos-1 and 1,030 for grounding
    hidden_size: int = 2048
    num_layers: int = 24
    num_heads: int = 32
    mlp_dim: int = 8192
    max_length: int = 2048  # code: tokens-per-sample
    # The papers say xPos, the released weights use absolute sinusoids.
    position: str = SINUSOIDAL
    dropout: float = 0.1  # embeddings, attention output, feed-forward output
    layer_norm_epsilon: float = 1e-5
    # The table of embeddings is filled up to a multiple of it, so that a mesh divides it; these
    # rows are zeros, never scored, and in no exported file.
    vocab_multiple: int = 1

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table inside the model (65,536 with a multiple of 512)."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclasses.dataclass(frozen=True)
class Kosmos2Config:
    """A whole model.

    Attributes:
      grid_size: location cells a side; `grid_size**2` location tokens end the vocabulary
        (0 for a model without them, as Kosmos-1).
      scan_layers: stack the parameters of like layers and scan over them; compiles faster,
        runs about 10% slower on CPU.
      dtype: dtype of activations; parameters are float32 always.
      attention: what computes self-attention over whole rows, one of `ATTENTIONS`. "auto" takes
        splash attention on TPU, kernels on GPU and XLA elsewhere.
      remat: what layers compute again for the gradient instead of keeping it, one of `REMATS`
        (t5x's names), from least to most: "none"; "minimal", all but the matrix products and
        splash attention; "attention", all but splash attention; "full", everything.
    """

    vision: VisionConfig = VisionConfig()
    resampler: ResamplerConfig = ResamplerConfig()
    decoder: DecoderConfig = DecoderConfig()
    grid_size: int = 32  # K2 section 2.1: 32 x 32 bins
    scan_layers: bool = False
    dtype: str = "float32"
    attention: str = AUTO
    remat: str = NONE

    def __post_init__(self) -> None:
        _check_config(self)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Kosmos2Config:
        """Inverse of `to_dict`. Unknown keys raise `ConfigError` with the nearest name."""
        return build_dataclass(cls, values)

    def replace(self, **changes: Any) -> Kosmos2Config:
        """A copy with fields replaced; `decoder={"position": "xpos"}` replaces within a part."""
        merged = {}
        for name, value in changes.items():
            part = getattr(self, name, None)
            if isinstance(value, Mapping) and dataclasses.is_dataclass(part):
                value = dataclasses.replace(part, **value)
            merged[name] = value
        return dataclasses.replace(self, **merged)


def build_dataclass(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """Builds the (nested, frozen) dataclass `cls` from nested mappings.

    Args:
      cls: the dataclass.
      values: field values; a field that is itself a dataclass takes a mapping.
      where: dotted prefix for messages.

    Raises:
      ConfigError: an unknown key, named with the nearest valid one.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    defaults = {
        name: f.default if f.default is not dataclasses.MISSING else None
        for name, f in fields.items()
    }
    kwargs = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"unknown setting {where}{key}; {nearest(key, fields, where)}")
        if dataclasses.is_dataclass(defaults[key]) and isinstance(value, Mapping):
            value = build_dataclass(type(defaults[key]), value, f"{where}{key}.")
        elif isinstance(value, list):
            value = tuple(value)
        kwargs[key] = value
    return cls(**kwargs)


def _check_config(config: Kosmos2Config) -> None:
    vision, decoder = config.vision, config.decoder
    for name, part in (("vision", vision), ("decoder", decoder)):
        if part.hidden_size % part.num_heads:
            raise ConfigError(
                f"{name}.hidden_size {part.hidden_size} is not a multiple of "
                f"{name}.num_heads {part.num_heads}"
            )
    if vision.image_size % vision.patch_size:
        raise ConfigError(
            f"vision.image_size {vision.image_size} is not a multiple of "
            f"vision.patch_size {vision.patch_size}"
        )
    if decoder.position not in (SINUSOIDAL, XPOS):
        raise ConfigError(
            f"decoder.position is {decoder.position!r}; it must be {SINUSOIDAL!r} or {XPOS!r}"
        )
    check_ranges({"vocab_multiple": COUNT}, vars(decoder), "decoder.")
    for name, known in (("attention", ATTENTIONS), ("remat", REMATS)):
        value = getattr(config, name)
        if value not in known:
            raise ConfigError(f"unknown model.{name} {value!r}; {nearest(value, known)}")
    if decoder.hidden_size % 2 or (decoder.hidden_size // decoder.num_heads) % 2:
        raise ConfigError("decoder.hidden_size and the size of a head must be even")


_TINY = Kosmos2Config(
    vision=VisionConfig(
        image_size=28, patch_size=14, hidden_size=24, num_layers=2, num_heads=3, mlp_dim=48
    ),
    resampler=ResamplerConfig(num_latents=5),
    decoder=DecoderConfig(
        vocab_size=120, hidden_size=32, num_layers=3, num_heads=4, mlp_dim=64, max_length=128
    ),
    grid_size=4,
)

PRESETS: dict[str, Kosmos2Config] = {
    # Loads the released weights: 1,664,485,376 parameters, sinusoidal positions.
    "kosmos2": Kosmos2Config(),
    # The papers' model; what pretraining from scratch uses.
    "kosmos2_xpos": Kosmos2Config(decoder=DecoderConfig(position=XPOS)),
    # K1 table 19: vocabulary 64,007, no location tokens.
    "kosmos1": Kosmos2Config(decoder=DecoderConfig(vocab_size=64007, position=XPOS), grid_size=0),
    # For tests: runs in milliseconds.
    "tiny": _TINY,
}


def preset(name: str) -> Kosmos2Config:
    """The named preset. Raises `ConfigError` with the known names."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
