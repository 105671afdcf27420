"""Groups of parameters: which are trained, at what learning rate, with what decay.

Paths of parameters are joined by "/", as `decoder/layers_0/mlp/up/kernel`. Parameters of stacked
layers (`scan_layers`) have one array for all layers; groups are nevertheless told apart by layer,
under the same paths.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kosmos2_jax.errors import ConfigError
from kosmos2_jax.models.lora import is_adapter

NAMED_GROUPS = ("vision", "vision_last_layer", "resampler", "decoder", "embeddings")
BASE = "base"  # of what LoRA leaves as it is


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Settings of some parameters.

    Attributes:
      match: regular expression that a parameter's path, or the path of a folder it lies in,
        matches as a whole: "decoder/layers_[0-3]", ".*/bias". Empty for a group that has one of
        the `NAMED_GROUPS` as its name; "embeddings" is the token table.
      learning_rate_factor: of the run's learning rate; weight decay scales with it, as in fairseq.
      weight_decay: None for that of the run.
      frozen: not trained at all: no gradient, no part in its norm, no decay, no optimiser state.
    """

    match: str = ""
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.learning_rate_factor < 0:
            raise ConfigError(
                f"learning_rate_factor {self.learning_rate_factor} is below 0; give 0 or more, or "
                "frozen=True"
            )


@dataclasses.dataclass(frozen=True)
class ParameterGroups:
    """Which group each parameter is in, from `find_groups`.

    Trees are nested dicts. A tree of the trained parameters lacks the frozen ones; of an array of
    stacked layers, some of which are frozen, it has the others.

    Attributes:
      settings: by name, those that have parameters.
      sizes: number of parameters by name.
      members: group by path; a name for each layer where layers are stacked.
    """

    settings: Mapping[str, ParameterGroup]
    sizes: Mapping[str, int]
    members: Mapping[str, tuple[str, ...]]

    @property
    def trained_settings(self) -> dict[str, ParameterGroup]:
        """Settings of the groups that are trained."""
        return {name: group for name, group in self.settings.items() if not group.frozen}

    def trained(self, params: Any) -> dict[str, Any]:
        """What is trained of a tree like the model's parameters."""
        return self._pick(params, lambda leaf, layers: leaf if layers is None else leaf[layers])

    def trained_shardings(self, shardings: Any) -> dict[str, Any]:
        """Shardings of `trained(params)` from those of `params`: layers are never cut."""
        return self._pick(shardings, lambda sharding, _: sharding)

    def merged(self, params: Any, trained: Any) -> dict[str, Any]:
        """`params` with the trained ones replaced; the others are the same to the bit."""
        flat, new = flatten_dict(params, sep="/"), flatten_dict(trained, sep="/")
        for path, value in new.items():
            layers = self._trained_layers(path)
            flat[path] = value if layers is None else flat[path].at[layers].set(value)
        return unflatten_dict(flat, sep="/")

    def numbers(self, trained: Any, of: Callable[[ParameterGroup], float]) -> dict[str, Any]:
        """A number of each trained parameter's group, to be broadcast over its array."""
        flat = flatten_dict(trained, sep="/")
        for path, leaf in flat.items():
            values = [of(self.settings[name]) for name in self._trained_names(path)]
            flat[path] = values[0]
            if len(set(values)) > 1:
                flat[path] = np.asarray(values, np.float32).reshape(-1, *[1] * (leaf.ndim - 1))
        return unflatten_dict(flat, sep="/")

    def norms(self, grads: Any) -> dict[str, jax.Array]:
        """Root of the sum of squares of each trained group, float32."""
        squares = dict.fromkeys(self.trained_settings, jnp.zeros([], jnp.float32))
        for path, leaf in flatten_dict(grads, sep="/").items():
            names = self._trained_names(path)
            square = jnp.square(leaf.astype(jnp.float32))
            if len(set(names)) == 1:
                squares[names[0]] += square.sum()
                continue
            by_layer = square.sum(axis=tuple(range(1, leaf.ndim)))
            for i, name in enumerate(names):
                squares[name] += by_layer[i]
        return {name: jnp.sqrt(square) for name, square in squares.items()}

    def table(self, learning_rate: float, weight_decay: float) -> str:
        """A line for each group: parameters, peak learning rate and decay, or that it is frozen."""
        rows = [("group", "parameters", "learning rate", "weight decay")]
        for name, group in self.settings.items():
            decay = weight_decay if group.weight_decay is None else group.weight_decay
            rate = learning_rate * group.learning_rate_factor
            shown = ("frozen", "") if group.frozen else (f"{rate:g}", f"{decay:g}")
            rows.append((name, f"{self.sizes[name]:,}", *shown))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )

    def _trained_names(self, path: str) -> list[str]:
        return [name for name in self.members[path] if not self.settings[name].frozen]

    def _trained_layers(self, path: str) -> slice | np.ndarray | None:
        """Index of the trained layers in a stacked array; None for all of an array."""
        frozen = [self.settings[name].frozen for name in self.members[path]]
        if not any(frozen):
            return None
        layers = np.flatnonzero(np.logical_not(frozen))
        if len(layers) and len(layers) == layers[-1] - layers[0] + 1:
            return slice(int(layers[0]), int(layers[-1]) + 1)
        return layers

    def _pick(self, tree: Any, take: Callable[[Any, Any], Any]) -> dict[str, Any]:
        flat = flatten_dict(tree, sep="/")
        chosen = {
            path: take(leaf, self._trained_layers(path))
            for path, leaf in flat.items()
            if self._trained_names(path)
        }
        return unflatten_dict(chosen, sep="/")


def find_groups(settings: Mapping[str, ParameterGroup], params: Any) -> ParameterGroups:
    """Puts every parameter into a group.

    A parameter that several groups match is in the one that matches fewest parameters: a layer
    before the tower it belongs to, whatever order they are written in. What no group matches is in
    a group called as its part of the model ("vision", "resampler", "decoder"), with the run's own
    settings. If there are LoRA's parameters, groups are made of them alone, and all others are
    frozen in group "base".

    Args:
      settings: by name of the group.
      params: the model's parameters, nested dicts of arrays or of their shapes.

    Raises:
      ConfigError: a group that matches nothing or is left with nothing, groups that cannot be told
        apart, or nothing that is trained.
    """
    flat = flatten_dict(params, sep="/")
    sizes = {path: size for each, leaf in flat.items() for path, size in _by_layer(each, leaf)}
    base = {path for path in sizes if not is_adapter(path)}
    base = base if len(base) < len(sizes) else set()
    candidates = [path for path in sizes if path not in base]
    parts = dict.fromkeys(path.split("/")[0] for path in candidates)
    if base and BASE in settings:
        raise ConfigError(f"optimizer.groups.{BASE}: LoRA has a group of this name; choose another")
    chosen = {part: ParameterGroup() for part in parts if part not in settings} | dict(settings)
    matched = {name: _matched(name, group, candidates) for name, group in settings.items()}
    group_of = {path: path.split("/")[0] for path in candidates}
    group_of |= _assign(matched, {name: sum(sizes[p] for p in ps) for name, ps in matched.items()})
    for name in settings:
        if name not in group_of.values():
            raise ConfigError(
                f"optimizer.groups.{name} is left with no parameters: all that it matches are in "
                "smaller groups; remove it"
            )
    group_of |= dict.fromkeys(base, BASE)
    chosen[BASE] = ParameterGroup(frozen=True)
    if all(chosen[name].frozen for name in group_of.values()):
        raise ConfigError("optimizer.groups freezes every parameter; leave one group to be trained")
    members = {
        each: tuple(group_of[path] for path, _ in _by_layer(each, leaf))
        for each, leaf in flat.items()
    }
    names = dict.fromkeys(group_of[path] for path in sizes)
    return ParameterGroups(
        {name: chosen[name] for name in names},
        {name: sum(sizes[p] for p, group in group_of.items() if group == name) for name in names},
        members,
    )


def _by_layer(path: str, leaf: Any) -> list[tuple[str, int]]:
    """(path, size) of a parameter, or of each layer of a stacked one."""
    if "/layers/" not in path:
        return [(path, leaf.size)]
    layers = leaf.shape[0]
    return [(path.replace("/layers/", f"/layers_{i}/"), leaf.size // layers) for i in range(layers)]


def _matched(name: str, group: ParameterGroup, paths: list[str]) -> list[str]:
    """The paths that a group matches."""
    pattern = group.match
    if name in NAMED_GROUPS and pattern:
        raise ConfigError(
            f"optimizer.groups.{name} has a match, but {name} is the name of a part of the model; "
            "give the group another name"
        )
    if not pattern:
        pattern = _meaning(name, paths)
    try:
        found = [path for path in paths if re.fullmatch(f"(?:{pattern})(/.*)?", path)]
    except re.error as error:
        raise ConfigError(
            f"optimizer.groups.{name}.match {pattern!r} is no regular expression: {error}"
        ) from None
    if not found:
        folders = {"/".join(p.split("/")[:n]) for p in paths for n in range(1, p.count("/") + 2)}
        raise ConfigError(
            f"optimizer.groups.{name} matches no parameter with {pattern!r}; "
            f"{_nearest(pattern, sorted(folders))}"
        )
    return found


def _meaning(name: str, paths: list[str]) -> str:
    """The expression of a named group."""
    if name == "embeddings":
        return "decoder/token_embedding"
    if name == "vision_last_layer":
        layers = [int(n) for p in paths for n in re.findall(r"^vision/layers_(\d+)/", p)]
        return f"vision/layers_{max(layers, default=0)}"
    if name in NAMED_GROUPS or any(path.split("/")[0] == name for path in paths):
        return re.escape(name)
    raise ConfigError(
        f"optimizer.groups.{name} has no match, and no part of the model has this name; "
        f"{_nearest(name, NAMED_GROUPS)}"
    )


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(NAMED_GROUPS)}"


def _assign(matched: Mapping[str, list[str]], sizes: Mapping[str, int]) -> dict[str, str]:
    """The group of each path: of those that match it, the one with fewest parameters."""
    group_of: dict[str, str] = {}
    for name in sorted(matched, key=lambda name: sizes[name], reverse=True):
        for path in matched[name]:
            other = group_of.get(path)
            if other is not None and sizes[other] == sizes[name]:
                raise ConfigError(
                    f"optimizer.groups {other} and {name} both match {path}, and as many "
                    "parameters; change the match of one of them"
                )
            group_of[path] = name
    return group_of
