"""From the command line to a `RunConfig`: configuration files, overrides, and plain errors."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from kosmos2_jax.config import build_dataclass
from kosmos2_jax.errors import ConfigError, nearest
from kosmos2_jax.interop.files import as_path
from kosmos2_jax.training.processes import ProcessSettings
from kosmos2_jax.training.run_config import RunConfig

Run = TypeVar("Run")


@dataclasses.dataclass(frozen=True)
class CommandLine(Generic[Run]):
    """What was asked for.

    Attributes:
      run: the run.
      workdir: its work folder.
      processes: how to find the other processes; None for one process.
    """

    run: Run
    workdir: epath.Path
    processes: ProcessSettings | None = None


def parse_command_line(argv: Sequence[str], program: type[Run] = RunConfig) -> CommandLine[Run]:
    """Reads `--config=FILE[:ARG] --config.NAME=VALUE … --workdir=DIR`, or gin's counterpart.

    That is `--gin_file=FILE … --gin.NAME=VALUE … --gin.MODEL_DIR="'DIR'"`, and
    `--gin_search_paths=FOLDER,…`; see `kosmos2_jax.training.gin_settings`.

    For several processes also `--distributed`, or `--coordinator=HOST:PORT --num_processes=N
    --process_id=I`; see `kosmos2_jax.training.processes.ProcessSettings`.

    Args:
      argv: the program's name, then its arguments.
      program: `RunConfig` for training, `EvaluationRun` for evaluation.

    Raises:
      ConfigError: a file that is not there, an unknown or ill-typed setting or option, named.
    """
    if any(re.match(r"--?gin[._]", argument) for argument in argv):
        return _parse_gin(argv, program)
    values = _read_flags(argv, needed=("config", "workdir"))
    run = build_dataclass(program, values.config.to_dict())
    return CommandLine(run, as_path(values.workdir), _processes_of(values))


def parse_run(argv: Sequence[str]) -> RunConfig:
    """Reads `--config=FILE[:ARG] --config.NAME=VALUE …`, as `parse_command_line` does."""
    return build_dataclass(RunConfig, _read_flags(argv, needed=("config",)).config.to_dict())


def to_config_dict(run: Any) -> ConfigDict:
    """The run as an `ml_collections.ConfigDict`, the form configuration files return."""
    return ConfigDict(dataclasses.asdict(run))


def _read_flags(argv: Sequence[str], needed: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    arguments = [_installed_config(argument) for argument in argv]
    config_flags.DEFINE_config_file(
        "config", None, "The run.", flag_values=values, sys_argv=arguments
    )
    if "workdir" in needed:
        flags.DEFINE_string("workdir", None, "Where the run writes.", flag_values=values)
        _define_processes(values)
    try:
        rest = values(arguments)
    except flags.Error as error:
        raise ConfigError(f"{error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        given = [argument for argument in arguments if argument.startswith("--config.")]
        _check_names(given, arguments)
        reason = " ".join(str(error.args[0]).split())
        raise ConfigError(f"cannot apply {', '.join(given)}: {reason}") from None
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; settings are --config.NAME=VALUE")
    for name in needed:
        if values[name].value is None:
            raise ConfigError(f"--{name} is missing: give --config=FILE and --workdir=DIR")
    return values


def _check_names(given: Sequence[str], arguments: Sequence[str]) -> None:
    """Whether the file has all settings that are `given` other values."""
    file = [a for a in arguments if not a.startswith("--config.")]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "The run.", flag_values=values, sys_argv=file)
    values([file[0], *(argument for argument in file if argument.startswith("--config="))])
    for argument in given:
        part, before = values.config, ""
        for name in argument.removeprefix("--config.").partition("=")[0].split("."):
            if not isinstance(part, ConfigDict):
                break  # a place in a tuple, say
            if name not in part:
                hint = nearest(name, part, before)
                raise ConfigError(f"{argument}: unknown setting {before}{name}; {hint}")
            part, before = part[name], f"{before}{name}."


def _parse_gin(argv: Sequence[str], program: type[Run]) -> CommandLine[Run]:
    bindings = [argument for argument in argv if re.match(r"--?gin\.", argument)]
    values = flags.FlagValues()
    flags.DEFINE_multi_string("gin_file", [], "The run, in files.", flag_values=values)
    flags.DEFINE_list("gin_search_paths", [], "Folders of gin files.", flag_values=values)
    _define_processes(values)
    try:
        rest = values([argument for argument in argv if argument not in bindings])
    except flags.Error as error:
        raise ConfigError(
            f"{error}; a run from gin files is --gin_file=FILE, --gin.NAME=VALUE and "
            "--gin.MODEL_DIR=\"'DIR'\", without --config and --workdir"
        ) from None
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; settings are --gin.NAME=VALUE")
    if not values.gin_file:
        raise ConfigError("--gin_file is missing: give --gin_file=FILE")
    from kosmos2_jax.training.gin_settings import read_gin

    run, folder = read_gin(
        "train" if program is RunConfig else "evaluate",
        program,
        values.gin_file,
        [re.sub(r"^--?gin\.", "", binding) for binding in bindings],
        values.gin_search_paths,
    )
    _check_types(run, program)
    return CommandLine(run, as_path(folder), _processes_of(values))


def _check_types(run: Any, program: type) -> None:
    """gin takes any value for any setting; an `ml_collections.ConfigDict` knows their types."""
    typed = to_config_dict(program())
    try:
        typed.update(dataclasses.asdict(run))
    except (TypeError, ValueError) as error:
        raise ConfigError(" ".join(str(error.args[0]).split())) from None


def _define_processes(values: flags.FlagValues) -> None:
    flags.DEFINE_bool(
        "distributed", False, "One of several processes that find each other.", flag_values=values
    )
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "How many there are.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which this is, from 0.", flag_values=values)


def _processes_of(values: flags.FlagValues) -> ProcessSettings | None:
    settings = ProcessSettings(values.coordinator, values.num_processes, values.process_id)
    return settings if values.distributed or settings != ProcessSettings() else None


def _installed_config(argument: str) -> str:
    """Points `--config=configs/x.py` at the installed configs if there is no such file here."""
    option, equals, value = argument.partition("=")
    if option != "--config" or not equals:
        return argument
    path, colon, parameter = value.partition(":")
    if Path(path).is_file():
        return argument
    spec = importlib.util.find_spec("kosmos2_jax.configs")
    folders = spec.submodule_search_locations if spec else []
    for folder in folders:
        if (file := Path(folder) / Path(path).name).is_file():
            return f"--config={file}{colon}{parameter}"
    known = sorted(
        p.name for folder in folders for p in Path(folder).glob("*.py") if p.name != "__init__.py"
    )
    raise ConfigError(f"no configuration file {path}; installed ones: {', '.join(known)}")
