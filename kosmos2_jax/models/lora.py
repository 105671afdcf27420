"""Low-rank adapters of linear layers (LoRA, Hu et al. 2021), as Hugging Face's peft has them.

A linear layer with kernel W gets `lora_a` [I, R] and `lora_b` [R, O] beside it, and computes
`x W + bias + scale * (x A) B`. The model's modules know nothing of it: training puts the second
term in with `adapters`, everything else works on kernels that it was added to (`merge_adapters`).

Paths of modules and parameters are joined by "/". Letters: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.models.initializers import torch_linear
from kosmos2_jax.models.layers import Linear
from kosmos2_jax.ranges import Range, check_ranges

LORA_A, LORA_B = "lora_a", "lora_b"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which linear layers are adapted, and how; defaults are peft's but for `rank`.

    Attributes:
      rank: R; 0 for no adapters.
      alpha: the adapters' output is multiplied by `alpha / rank`.
      targets: regular expression that the path of a linear layer matches as a whole; queries and
        values of the decoder as in the paper (section 4.2).
      dropout: of the adapters' inputs.
    """

    rank: int = 0
    alpha: float = 8.0
    targets: str = "decoder/.*/attention/(query|value)"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        ranges = {"rank": Range(least=0), "dropout": Range(least=0, below=1)}
        check_ranges(ranges, vars(self), "lora.")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ConfigError(
                f"lora.targets {self.targets!r} is no regular expression: {error}"
            ) from None

    @property
    def scale(self) -> float:
        """Factor of the adapters' output."""
        return self.alpha / self.rank


def is_adapter(path: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return path.rpartition("/")[2] in (LORA_A, LORA_B)


def add_adapters(boxed: Mapping[str, Any], lora: LoraConfig, key: Array) -> dict[str, Any]:
    """Parameters with fresh adapters: A uniform in ±1/sqrt(I) as peft's, B zero.

    Args:
      boxed: the model's parameters in the boxes that carry their logical axis names, of layers
        each by itself or stacked.
      lora: which layers.
      key: random key.

    Raises:
      ConfigError: no linear layer is chosen, or some of stacked layers and others not.
    """
    flat = flatten_dict(boxed, sep="/")
    linear = [path.removesuffix("/kernel") for path in flat if _is_linear(path, flat)]
    chosen = [path for path in linear if _is_chosen(path, flat, lora.targets)]
    if not chosen:
        known = sorted({re.sub(r"layers(_\d+)?/", "layers.*/", path) for path in linear})
        raise ConfigError(
            f"lora.targets {lora.targets!r} matches no linear layer; there are {', '.join(known)}"
        )
    for path, one_key in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
        kernel, names = flat[f"{path}/kernel"].unbox(), flat[f"{path}/kernel"].names
        *stack, inputs, outputs = kernel.shape
        a = torch_linear(inputs)(one_key, (*stack, inputs, lora.rank), kernel.dtype)
        b = jnp.zeros((*stack, lora.rank, outputs), kernel.dtype)
        flat[f"{path}/{LORA_A}"] = nn.LogicallyPartitioned(a, (*names[:-1], None))
        flat[f"{path}/{LORA_B}"] = nn.LogicallyPartitioned(b, (*names[:-2], None, names[-1]))
    return unflatten_dict(flat, sep="/")


def _is_linear(path: str, flat: Mapping[str, Any]) -> bool:
    """Whether a parameter is the kernel of a `Linear`; the patch embedding has no bias."""
    folder, _, name = path.rpartition("/")
    return name == "kernel" and f"{folder}/bias" in flat


def _is_chosen(path: str, flat: Mapping[str, Any], targets: str) -> bool:
    if "/layers/" not in f"{path}/":
        return re.fullmatch(targets, path) is not None
    layers = range(flat[f"{path}/kernel"].unbox().shape[0])
    found = {bool(re.fullmatch(targets, path.replace("layers", f"layers_{i}"))) for i in layers}
    if len(found) > 1:
        raise ConfigError(
            f"lora.targets {targets!r} chooses {path} in some layers only, which stacked layers "
            "cannot have; set model.scan_layers to False"
        )
    return found.pop()


def adapters(lora: LoraConfig) -> AbstractContextManager[None]:
    """Within it, linear layers that have adapters use them.

    Dropout is on where the model is applied with a random key named "dropout".
    """

    def adapted(
        linear: Callable[..., Array], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module, out = context.module, linear(*args, **kwargs)
        if not isinstance(module, Linear) or not module.has_variable("params", LORA_A):
            return out
        (x,) = args
        if lora.dropout and module.has_rng("dropout"):
            keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - lora.dropout, x.shape)
            x = jnp.where(keep, x / (1 - lora.dropout), 0)
        a, b = (module.get_variable("params", name) for name in (LORA_A, LORA_B))
        return out + low_rank(x.astype(out.dtype), a, b, lora.scale)

    return nn.intercept_methods(adapted)


def with_adapters(function: Callable[..., Any], lora: LoraConfig) -> Callable[..., Any]:
    """The function, called within `adapters` if there are any."""
    if not lora.rank:
        return function

    @functools.wraps(function)
    def adapted(*args: Any, **kwargs: Any) -> Any:
        with adapters(lora):
            return function(*args, **kwargs)

    return adapted


def low_rank(
    x: Float[Array, "*batch I"],
    a: Float[Array, "I R"],
    b: Float[Array, "R O"],
    scale: float,
) -> Float[Array, "*batch O"]:
    """`scale * (x A) B` in the dtype of `x`."""
    return (x @ a.astype(x.dtype)) @ b.astype(x.dtype) * scale


def split_adapters(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's own parameters, and the adapters alone; both nested."""
    flat = flatten_dict(params, sep="/")
    own = {path: leaf for path, leaf in flat.items() if not is_adapter(path)}
    rest = {path: leaf for path, leaf in flat.items() if is_adapter(path)}
    return unflatten_dict(own, sep="/"), unflatten_dict(rest, sep="/")


def join_adapters(own: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split_adapters`."""
    return unflatten_dict(flatten_dict(own) | flatten_dict(rest))


def merge_adapters(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The model's own parameters, with `scale * A B` added to the kernels that have adapters.

    Args:
      params: with adapters; NumPy or JAX arrays, layers stacked or not.
      scale: `LoraConfig.scale`.
    """
    flat = flatten_dict(params, sep="/")
    merged = {path: leaf for path, leaf in flat.items() if not is_adapter(path)}
    for path in flat:
        folder, _, name = path.rpartition("/")
        if name == LORA_A:
            merged[f"{folder}/kernel"] = merged[f"{folder}/kernel"] + scale * (
                flat[path] @ flat[f"{folder}/{LORA_B}"]
            )
    return unflatten_dict(merged, sep="/")
