"""The commands on pages of docs/ are run, in the order of the page, on small data.

Fenced blocks of "sh" are commands, of "python" programs. What a page speaks of is made by its
function in `docs_pages.py`, which also makes commands small. What is Python runs in this process:
to import JAX and TensorFlow for each of them would take longer than they do.
"""

from __future__ import annotations

import configparser
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kosmos2_jax import cli
from kosmos2_jax.training.settings import parse_command_line

from . import docs_pages
from .emulated_bucket import bucket  # noqa: F401  # a fixture

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^( *)```(sh|python)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Kind and content of the blocks that are run."""
    for indent, kind, content in _BLOCK.findall(text):
        yield kind, re.sub(rf"^{indent}", "", content, flags=re.MULTILINE)


def commands(block: str) -> list[str]:
    """The commands of a block; a backslash at the end of a line goes on with the next."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def run(command: str, small: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command as a shell would, in this process."""
    words = shlex.split(command)
    if words[:2] == ["pip", "install"]:
        check_extras(words[2:])
        return
    if words[0] == "gcloud" or words[0].startswith("tools/launch_"):
        here = command.replace("tools/", f"{ROOT}/tools/", 1)
        subprocess.run(["bash", "-c", here], check=True)
        if "--" in words:  # what a host or worker would be told
            monkeypatch.setattr(sys, "argv", ["train", *words[words.index("--") + 1 :]])
            parse_command_line(sys.argv)
        return
    program = words[1:] if words[0] == "python" else words
    start = 2 if program[0] == "-m" else 1
    argv = [program[start - 1], *program[start:], *small]
    monkeypatch.setattr(sys, "argv", argv)
    if program[0] == "kosmos2":
        status = cli.main(argv[1:])
    else:
        monkeypatch.syspath_prepend(ROOT / "tools")  # as Python does for a file; runpy does not
        status = status_of(program, argv)
    assert not status, f"exit status {status} of: {command}"


def status_of(program: Sequence[str], argv: Sequence[str]) -> object:
    """Exit status of `python -m MODULE` or `python tools/FILE`."""
    with pytest.raises(SystemExit) as ended:
        if program[0] == "-m":
            sys.modules.pop(program[1], None)  # runpy warns of modules that are there already
            runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / program[0]), run_name="__main__")
    return ended.value.code


def check_extras(packages: Sequence[str]) -> None:
    """What pip is to install are extras that setup.cfg has."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for package in packages:
        extras = re.fullmatch(r"\.(?:\[([a-z0-9,]+)\])?", package)
        assert extras, f"this test cannot install {package}"
        assert not extras[1] or set(extras[1].split(",")) <= set(setup["options.extras_require"])


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _BLOCK.search(page.read_text())], ids=lambda page: page.stem
)
def test_every_command_of_a_page_runs(page, tmp_path, monkeypatch, request):
    made = getattr(docs_pages, page.stem.replace("-", "_"))
    small = made(tmp_path, request.getfixturevalue)
    monkeypatch.chdir(tmp_path)
    for kind, block in blocks(page.read_text()):
        if kind == "python":
            exec(compile(block, page.name, "exec"), {})
            continue
        for command in commands(block):
            more = [
                word
                for start, words in small.items()
                if command.startswith(start)
                for word in words
            ]
            run(command, more, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]*)[^)]*\)", page.read_text()):
        if target and "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
