"""Runs from gin files, in t5x's manner: `--gin_file=FILE --gin.TRAIN_STEPS=10`.

Every frozen dataclass of a run is a configurable of its own name, `train` takes the run and its
work folder, `evaluate` the same of an evaluation. Macros have t5x's names where t5x has them. See
`configs/gin/run.gin`, which all files include.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import tokenize
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin

from kosmos2_jax.errors import ConfigError, nearest

_MODULE = "kosmos2_jax"
# gin takes the folders of a path for a Python package too, and fails where it is not quite one.
del gin.config._FILE_READERS[1:]
# What gin raises for what stands in a file or on the command line.
_MISTAKES = (ValueError, TypeError, SyntaxError, tokenize.TokenError, OSError, ImportError)


def feature_length(lengths: Mapping[str, int], feature: str) -> int:
    """One of t5x's `TASK_FEATURE_LENGTHS`.

    Raises:
      ConfigError: it is not there.
    """
    if feature not in lengths:
        raise ConfigError(f"TASK_FEATURE_LENGTHS lacks {feature!r}; it has {', '.join(lengths)}")
    return lengths[feature]


def train(run: Any, model_dir: str) -> tuple[Any, str]:
    """What training is told."""
    return run, model_dir


def evaluate(run: Any, model_dir: str) -> tuple[Any, str]:
    """What an evaluation is told."""
    return run, model_dir


_FUNCTIONS = {"train": train, "evaluate": evaluate, "feature_length": feature_length}
_FOLDERS = {"train": "MODEL_DIR", "evaluate": "EVAL_OUTPUT_DIR"}


def configurables(root: type) -> dict[str, type]:
    """A frozen dataclass and those within it, by name."""
    found = {root.__name__: root}
    for field in dataclasses.fields(root):
        if dataclasses.is_dataclass(field.default):
            found |= configurables(type(field.default))
    return found


def read_gin(
    program: str,
    root: type,
    files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str],
) -> tuple[Any, str]:
    """What gin files and bindings describe.

    Args:
      program: "train" or "evaluate", the configurable that the files bind.
      root: frozen dataclass of its `run`.
      files: in order; later ones win. Looked for here, in `search_paths`, and where the configs
        are installed.
      bindings: "NAME = VALUE", which win over files.
      search_paths: folders.

    Returns:
      The run, and the work folder.

    Raises:
      ConfigError: a file that is not there, an unknown name, with the nearest valid one, or a
        value that is none.
    """
    known = configurables(root)
    for name, target in {**known, **_FUNCTIONS}.items():
        _register(target, name)
    for folder in (*search_paths, *_installed_folders()):
        gin.add_config_file_search_path(folder)
    gin.clear_config()
    try:
        for file in files:
            _attempt(known, lambda file=file: gin.parse_config_file(file), file)
        for binding in bindings:
            _check_macro(binding)
            _attempt(known, lambda binding=binding: gin.parse_config(binding), f"--gin.{binding}")
        run, folder = _attempt(known, gin.get_configurable(program), ", ".join(files))
    finally:
        gin.clear_config()
    if not isinstance(folder, str):
        raise ConfigError(
            f"the work folder is missing: give --gin.{_FOLDERS[program]}=\"'DIR'\", with both "
            "kinds of quotes"
        )
    return run, folder


def _attempt(known: Mapping[str, Any], action: Callable[[], Any], where: str) -> Any:
    try:
        return action()
    except _MISTAKES as error:
        raise ConfigError(_reason(error, known, where)) from None


def _reason(error: Exception, known: Mapping[str, Any], where: str) -> str:
    """gin's error in one line, with the nearest valid name."""
    first, *rest = str(error).splitlines()
    place = next((line.strip() for line in reversed(rest) if 'In file "' in line), "")
    where = place.removeprefix("In file ") or where
    if unknown := re.search(r"Configurable '(\w+)' doesn't have a parameter named '(\w+)'", first):
        cls, name = unknown.groups()
        fields = inspect.signature({**known, **_FUNCTIONS}[cls]).parameters
        return f"{where}: unknown setting {cls}.{name}; {nearest(name, fields, f'{cls}.')}"
    if unknown := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", first):
        name = unknown[1].rpartition("/")[2]
        return f"{where}: there is no {name!r}; {nearest(name, known)}"
    if isinstance(error, SyntaxError | tokenize.TokenError):
        return (
            f"{where} cannot be read ({first}): values are Python's, so that texts have quotes, "
            "as in --gin.MODEL_DIR=\"'runs/mine'\""
        )
    return f"{where}: {first}"


def _check_macro(binding: str) -> None:
    """gin lets anybody define a macro; one that no file defines would do nothing."""
    name = binding.partition("=")[0].strip()
    if "." in name:
        return
    defined = re.findall(r"^([A-Za-z_]\w*) = ", gin.config_str(), re.MULTILINE)
    if name not in defined:
        raise ConfigError(
            f"--gin.{name}: no file defines the macro {name!r}; {nearest(name, defined)}"
        )


def _register(target: Callable[..., Any], name: str) -> None:
    try:
        gin.get_configurable(name)
    except ValueError:
        gin.external_configurable(target, name, module=_MODULE)


def _installed_folders() -> list[str]:
    """Folders beside which "configs/gin/FILE" lies, in a checkout and in a wheel alike."""
    spec = importlib.util.find_spec(f"{_MODULE}.configs")
    return [str(Path(folder).parent) for folder in spec.submodule_search_locations]
