"""Puts a headless Chromium where no browser is installed, for the demo's test.

    python tools/get_chromium.py FOLDER        # FOLDER/chromium is the program

Playwright downloads browsers from its own server, which not every machine reaches; this one comes
from the npm registry, in @sparticuz/chromium (Linux on x86-64), and needs npm alone. Its version
and checksum are fixed. Nothing is done where `chromium` or `google-chrome` is on the PATH.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import brotli
from npm_package import fetch_package

from kosmos2_jax.errors import Kosmos2Error

# Name and version of the package, and SHA-256 of its tarball.
_PACKAGE = (
    "@sparticuz/chromium@153.0.0",
    "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0",
)
_INSTALLED = ("chromium", "google-chrome")
_PIECE = 1 << 20
# Without a font it ends itself at the first text; the package's own file names folders of Lambda.
_FONTS = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{folder}/fonts</dir><cachedir>{folder}/cache</cachedir></fontconfig>
"""
_START = """\
#!/bin/sh
export LD_LIBRARY_PATH='{folder}/lib:{folder}' FONTCONFIG_FILE='{folder}/fonts.conf'
exec '{folder}/program' "$@"
"""


def main() -> None:
    """Gets it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if any(map(shutil.which, _INSTALLED)) or (folder / "chromium").exists():
        return
    with tempfile.TemporaryDirectory() as place:
        try:
            archive = fetch_package(*_PACKAGE, Path(place))
        except Kosmos2Error as error:
            sys.exit(f"get_chromium: there is no {' or '.join(_INSTALLED)}, and {error}")
        with tarfile.open(archive) as package:
            package.extractall(place, filter="data")
        unpack(Path(place) / "package" / "bin", folder)
    print(f"{folder / 'chromium'}: {_PACKAGE[0]}", file=sys.stderr)


def unpack(packed: Path, folder: Path) -> None:
    """Unpacks libraries, fonts and program into `folder`, and writes what starts it last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("al2023", "fonts", "swiftshader"):
        data = brotli.decompress((packed / f"{name}.tar.br").read_bytes())
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(folder, filter="data")
    decompressor, program = brotli.Decompressor(), folder / "program"
    with (packed / "chromium.br").open("rb") as source, program.open("wb") as file:
        while piece := source.read(_PIECE):
            file.write(decompressor.process(piece))
    program.chmod(0o755)
    (folder / "fonts.conf").write_text(_FONTS.format(folder=folder.resolve()))
    start = folder / "chromium.part"
    start.write_text(_START.format(folder=folder.resolve()))
    start.chmod(0o755)
    os.replace(start, folder / "chromium")


if __name__ == "__main__":
    main()
