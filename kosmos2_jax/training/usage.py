"""The help page of `python -m kosmos2_jax.train` and `.evaluate`.

It is read from source files, since importing them takes seconds.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

# What to run, the dataclass that is its settings, gin's name of the work folder.
_PROGRAMS = {
    "train": ("RunConfig", "MODEL_DIR"),
    "evaluate": ("EvaluationRun", "EVAL_OUTPUT_DIR"),
}
_PAGE = """\
usage: python -m kosmos2_jax.{program} --config=FILE --workdir=DIR [--config.NAME=VALUE ...]
       python -m kosmos2_jax.{program} --gin_file=FILE --gin.{folder}="'DIR'" [--gin.NAME=VALUE ...]

{about}

options:
  --config=FILE[:ARG]    a configuration file, or one of those below; ARG goes to its get_config
  --config.NAME=VALUE    another value of a setting, as --config.mesh.fsdp=8
  --workdir=DIR          a folder that all hosts share, or gs://BUCKET/FOLDER
  --gin_file=FILE        the same from gin files, --gin.NAME=VALUE with Python's values;
                         --gin_search_paths=FOLDER,... where else they are looked for
  --distributed          one of several processes that find each other: Cloud TPU, Slurm, ...
  --coordinator=HOST:PORT --num_processes=N --process_id=I
                         the same anywhere else; I counts from 0
  --debug                errors show where they arose
  --help                 this page

configurations, also in configs/gin/:
{configs}

settings; a run writes all of them and their parts to its work folder:
{settings}
"""


def answer_help(program: str, about: str) -> None:
    """Prints the page and ends the program if its arguments ask for it.

    Args:
      program: "train" or "evaluate".
      about: its module's docstring.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_page(program, about), end="")
        sys.exit(0)


def help_page(program: str, about: str) -> str:
    """The page; see `answer_help`."""
    settings, folder = _PROGRAMS[program]
    return _PAGE.format(
        program=program,
        folder=folder,
        about=about.strip(),
        configs=_configurations(),
        settings=_attributes(Path(__file__).with_name("run_config.py"), settings),
    )


def _configurations() -> str:
    """Names and first lines of the files that are installed."""
    (folder,) = importlib.util.find_spec("kosmos2_jax.configs").submodule_search_locations
    files = sorted(file for file in Path(folder).glob("*.py") if file.stem != "__init__")
    width = max(len(file.name) for file in files)
    return "\n".join(f"  {f.name:{width}}  {_docstring(f).splitlines()[0]}" for f in files)


def _docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _attributes(file: Path, name: str) -> str:
    """What the docstring of a class says about its attributes."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (found,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    return (ast.get_docstring(found) or "").partition("Attributes:\n")[2]
