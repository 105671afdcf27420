"""Times our inference beside transformers' at full size on the CPU, in one process.

Both have the same random weights and read the same prompts: a picture and a few words, 71 tokens.
Reading is timed as writing one token, a step as what each further token takes. Captions are whole:
16 pictures, those in $KOSMOS2_ASSETS/images first and noise after them, through our engine with
continuous batching beside one batch of transformers' generate. transformers runs first; its weights
then move to our model tensor by tensor, in float32, bfloat16 copies stay behind, so that never
much more than one model is in memory (about 12 GiB). Before anything counts both must have written
the same tokens. The last line printed is JSON:

  prefill_b1, decode_b1, prefill_b8, decode_b8, caption16: transformers' seconds by ours, float32.
  decode_b1_int8_vs_best: a step of the faster of transformers' float32 and bfloat16 by ours with
    int8 weights.
  seconds: of each, medians. tokens_per_second, weight_gib: of each kind of weights, one row.
  bandwidth_share: of the measured speed of memory, at which a step reads the decoder's weights.
  bounds: the ratios that a program would reach here whose products with weights each ran as fast as
    the fastest of either library alone, but no faster than their weights come from memory, and that
    spent no time on anything else.
  same_tokens: share of equal tokens. int8_kl: mean divergence of int8's next-token distributions
    from float32's, in nats, beside float32's mean entropy.

    KOSMOS2_ASSETS=… python tools/benchmark_inference.py
    python tools/benchmark_inference.py --layers 4 --only b1 int8
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kosmos2_jax.startup import prepare_environment

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    import numpy as np

    from kosmos2_jax.config import Kosmos2Config
    from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary
    from kosmos2_jax.inference.engine import Engine
    from kosmos2_jax.inference.prompt_batch import Prompt

THEIRS, THEIRS_BFLOAT16, OURS, OURS_INT8 = (
    "transformers",
    "transformers bfloat16",
    "kosmos2_jax",
    "kosmos2_jax int8",
)
CAPTIONS = "caption16"
ROWS = {"b1": 1, "b8": 8, CAPTIONS: 16}
_ASSETS = Path(os.environ.get("KOSMOS2_ASSETS", ""))
MIN_SAME_TOKENS = 0.95  # float32 sums differ in their last bits, and so may a close decision

Write = Callable[[list["Prompt"], int], "np.ndarray"]  # prompts, new tokens of each -> tokens


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; gives the exit status: 1 if the tokens differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24, help="of tower and decoder each")
    parser.add_argument("--only", nargs="+", choices=[*ROWS, "int8"], default=[*ROWS, "int8"])
    parser.add_argument("--tokens", type=int, default=16, help="steps that are timed")
    parser.add_argument("--caption-tokens", type=int, default=32, help="of a caption")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many; captions: 1")
    parser.add_argument("--seed", type=int, default=0, help="of weights, pictures and prompts")
    arguments = parser.parse_args(argv)
    if CAPTIONS in arguments.only and not _ASSETS.joinpath("tokenizer").is_dir():
        parser.error(
            f"{CAPTIONS} needs the tokenizer: let KOSMOS2_ASSETS name the folder that has the "
            f"folder tokenizer, or leave {CAPTIONS} out with --only"
        )
    prepare_environment()
    import jax

    jax.config.update("jax_platforms", "cpu")
    found = _compare(arguments)
    print(json.dumps(found), flush=True)
    return 0 if found["same_tokens"] >= MIN_SAME_TOKENS else 1


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs all and gives what is printed."""
    import numpy as np
    import parity
    from machine_bounds import memory_speed

    from kosmos2_jax.config import preset

    layers = {"num_layers": arguments.layers}
    config = preset("kosmos2").replace(vision=layers, decoder=layers)
    rng = np.random.default_rng(arguments.seed)
    prompts = {part: [parity.random_prompt(config, rng) for _ in range(ROWS[part])]
               for part in ("b1", "b8")}  # fmt: skip
    vocabulary = None
    if CAPTIONS in arguments.only:
        vocabulary = _vocabulary()
        prompts[CAPTIONS] = _caption_prompts(config, vocabulary, rng)
    runs = _Runs(arguments, prompts)
    speeds = [memory_speed()]
    model = parity.random_reference(config, arguments.seed)
    print(f"transformers' attention: {model.config._attn_implementation}", flush=True)
    _their_tokens(model, prompts["b1"], 2)  # threads start, memory is taken
    runs.time(THEIRS, lambda rows, new: _their_tokens(model, rows, new), compiles=False)
    params = _take_params(model, config, keep_bfloat16="int8" in arguments.only)
    speeds.append(memory_speed())
    runs.time(OURS, lambda rows, new: _our_tokens(config, params, rows, new), parts=("b1", "b8"))
    if vocabulary is not None:
        with _engine(config, params, vocabulary) as engine:
            runs.time(OURS, lambda rows, new: _captions(engine, rows, new), parts=(CAPTIONS,))
    found: dict[str, Any] = {}
    weights = {OURS: _stored_gib(params)}
    if "int8" in arguments.only:
        logits = _our_logits(config, params, prompts["b8"][:4])
        params = _to_int8(params)
        weights[OURS_INT8] = _stored_gib(params)
        found["int8_kl"] = _divergence(logits, _our_logits(config, params, prompts["b8"][:4]))
        for name, write in (
            (THEIRS_BFLOAT16, lambda rows, new: _their_tokens(model, rows, new)),
            (OURS_INT8, lambda rows, new: _our_tokens(config, params, rows, new)),
        ):
            runs.time(name, write, parts=("b1",))
    speeds.append(memory_speed())
    memory = _use_of_memory(config, runs.seconds, weights, speeds)
    bounds = _bounds(config, runs.seconds[THEIRS], prompts, arguments, statistics.median(speeds))
    return {**runs.ratios(), "bounds": bounds, **found, **memory}


class _Runs:
    """Times and tokens of all that was run."""

    def __init__(self, arguments: argparse.Namespace, prompts: dict[str, list[Prompt]]) -> None:
        self._arguments, self._prompts = arguments, prompts
        self.seconds: dict[str, dict[str, float]] = {}
        self._tokens: dict[str, dict[str, np.ndarray]] = {}

    def time(
        self, name: str, write: Write, *, parts: Sequence[str] = tuple(ROWS), compiles: bool = True
    ) -> None:
        """Times one implementation; if it compiles, the first run of each shape is left out."""
        arguments = self._arguments
        seconds, tokens = self.seconds.setdefault(name, {}), self._tokens.setdefault(name, {})
        wanted = ["b1", *arguments.only] if "int8" in arguments.only else arguments.only
        for part in dict.fromkeys(wanted):
            if part not in parts:
                continue
            rows = self._prompts[part]
            if part == CAPTIONS:
                if compiles:
                    write(rows, 2)
                run = self._median(write, rows, arguments.caption_tokens, 1, compiles=False)
                seconds[part], tokens[part] = run
            else:
                times = arguments.repeats, compiles
                first, _ = self._median(write, rows, 1, *times)
                whole, tokens[part] = self._median(write, rows, 1 + arguments.tokens, *times)
                seconds[f"prefill_{part}"] = first
                seconds[f"decode_{part}"] = (whole - first) / arguments.tokens
            print(f"{name:22} {part}: {seconds}", flush=True)

    def _median(
        self, write: Write, rows: list[Prompt], new: int, repeats: int, compiles: bool
    ) -> tuple[float, np.ndarray]:
        times = []
        for _ in range(compiles + repeats):
            start = time.perf_counter()
            tokens = write(rows, new)
            times.append(time.perf_counter() - start)
        return statistics.median(times[compiles:]), tokens

    def ratios(self) -> dict[str, float]:
        """transformers' seconds by ours, and the share of equal tokens."""
        theirs, ours = self.seconds[THEIRS], self.seconds[OURS]
        found = {part: theirs[part] / ours[part] for part in theirs}
        if OURS_INT8 in self.seconds:
            best = min(self.seconds[name]["decode_b1"] for name in (THEIRS, THEIRS_BFLOAT16))
            found["decode_b1_int8_vs_best"] = best / self.seconds[OURS_INT8]["decode_b1"]
        pairs = [
            (self._tokens[THEIRS][part], self._tokens[OURS][part]) for part in self._tokens[OURS]
        ]
        same = sum((one == other).sum() for one, other in pairs)
        found["same_tokens"] = float(same / sum(one.size for one, _ in pairs))
        return found


def _use_of_memory(
    config: Kosmos2Config,
    seconds: dict[str, dict[str, float]],
    weights: dict[str, float],
    speeds: list[float],
) -> dict[str, Any]:
    from machine_bounds import step_products, weight_bytes

    read = weight_bytes(step_products(config, 1))
    shares = {THEIRS: 1.0, THEIRS_BFLOAT16: 0.5, OURS: 1.0, OURS_INT8: 0.25}
    steps = {name: found["decode_b1"] for name, found in seconds.items() if "decode_b1" in found}
    speed = statistics.median(speeds)
    return {
        "seconds": seconds,
        "tokens_per_second": {name: 1 / step for name, step in steps.items()},
        "weight_gib": weights,
        "memory_gb_per_second": [found / 1e9 for found in speeds],
        "bandwidth_share": {
            name: read * shares[name] / step / speed for name, step in steps.items()
        },
        "layers": config.decoder.num_layers,
    }


def _bounds(
    config: Kosmos2Config,
    theirs: dict[str, float],
    prompts: dict[str, list[Prompt]],
    arguments: argparse.Namespace,
    bytes_per_second: float,
) -> dict[str, float]:
    """The best ratios that this machine allows, see the top of this file."""
    from machine_bounds import least_seconds, reading_products, step_products

    found = {}
    for part, rows in prompts.items():
        if part not in arguments.only:
            continue
        step = least_seconds(step_products(config, len(rows)), bytes_per_second)
        products = reading_products(config, len(rows), len(rows[0].ids))
        reading = least_seconds(products, bytes_per_second)
        if part == CAPTIONS:
            found[part] = theirs[part] / (reading + (arguments.caption_tokens - 1) * step)
        else:
            found[f"prefill_{part}"] = theirs[f"prefill_{part}"] / reading
            found[f"decode_{part}"] = theirs[f"decode_{part}"] / step
    return found


# transformers ---------------------------------------------------------------------------------


def _their_tokens(model: Any, prompts: list[Prompt], new: int) -> np.ndarray:
    import parity
    import torch

    inputs = [parity.reference_inputs(prompt) for prompt in prompts]
    batch = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        written = model.generate(
            **batch, max_new_tokens=new, do_sample=False, suppress_tokens=[1], min_new_tokens=new
        )
    return written[:, len(prompts[0].ids) :].numpy()


def _take_params(model: Any, config: Kosmos2Config, keep_bfloat16: bool) -> dict[str, Any]:
    """Our parameters, each tensor moved by itself; `model` is bfloat16 or empty afterwards."""
    import torch

    from kosmos2_jax.inference.quantization import place_parameter
    from kosmos2_jax.interop.layout import nest
    from kosmos2_jax.interop.names import HUGGING_FACE

    tensors = dict(model.named_parameters())
    flat = {}
    for entry in HUGGING_FACE.entries(config):
        tensor = tensors.pop(entry.foreign)
        # Copied, as torch's memory is given up.
        value = entry.to_ours(tensor.detach().numpy()).copy()
        flat[entry.ours] = place_parameter(entry.ours, value)
        left = tensor.detach().to(torch.bfloat16) if keep_bfloat16 else torch.empty(0)
        tensor.data = left
    if keep_bfloat16:
        model.to(torch.bfloat16)  # the buffers, too
    gc.collect()
    return nest(flat)


# Ours -----------------------------------------------------------------------------------------


def _our_tokens(config: Kosmos2Config, params: Any, prompts: list[Prompt], new: int) -> np.ndarray:
    import numpy as np

    from kosmos2_jax.inference.decoding import generate
    from kosmos2_jax.inference.prompt_batch import batch_prompts
    from kosmos2_jax.inference.sampling import SamplingConfig

    batch = batch_prompts(prompts, max_length=config.decoder.max_length)
    written = generate(config, params, batch, SamplingConfig(new, no_repeat_ngram_size=0))
    return np.asarray(written.tokens)


def _vocabulary() -> Kosmos2Vocabulary:
    from kosmos2_jax.grounding.vocabulary import Kosmos2Vocabulary

    folder = _ASSETS / "tokenizer"
    files = folder / "sentencepiece.bpe.model", folder / "dict.txt"
    return Kosmos2Vocabulary(files[0], dict_file=files[1])


def _caption_prompts(
    config: Kosmos2Config, vocabulary: Kosmos2Vocabulary, rng: np.random.Generator
) -> list[Prompt]:
    """ "An image of", after each picture."""
    import numpy as np

    from kosmos2_jax.inference.questions import Questions

    size, count = config.vision.image_size, ROWS[CAPTIONS]
    pictures: list[Any] = sorted((_ASSETS / "images").glob("*"))[:count]
    while len(pictures) < count:
        pictures.append(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    questions = Questions(config, vocabulary)
    return [questions.describe(picture).request.prompt for picture in pictures]


def _engine(config: Kosmos2Config, params: Any, vocabulary: Kosmos2Vocabulary) -> Engine:
    from kosmos2_jax.inference.engine import Engine

    return Engine(config, params, vocabulary, rows=ROWS[CAPTIONS])


def _captions(engine: Engine, prompts: list[Prompt], new: int) -> np.ndarray:
    import numpy as np

    from kosmos2_jax.inference.requests import Request
    from kosmos2_jax.inference.sampling import SamplingConfig

    sampling = SamplingConfig(new, no_repeat_ngram_size=0)
    outputs = engine.generate(Request(prompt, sampling) for prompt in prompts)
    return np.array([output.ids for (output,) in outputs])


def _to_int8(params: Any) -> Any:
    """int8 parameters; those of float32 are freed one by one."""
    from kosmos2_jax.inference.quantization import INT8, place_parameter
    from kosmos2_jax.interop.layout import flatten, nest
    from kosmos2_jax.models.products import RowKernel

    flat = flatten(params)
    params.clear()
    for path in list(flat):
        leaf = flat.pop(path)
        value = leaf.weight.T if isinstance(leaf, RowKernel) else leaf
        flat[path] = place_parameter(path, value, INT8)
    return nest(flat)


def _stored_gib(params: Any) -> float:
    from kosmos2_jax.inference.quantization import stored_bytes

    return stored_bytes(params) / 2**30


def _our_logits(config: Kosmos2Config, params: Any, prompts: list[Prompt]) -> np.ndarray:
    """Log-probabilities at every place of each prompt, [N, V]."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from kosmos2_jax.models.kosmos2 import Kosmos2

    apply = jax.jit(lambda *features: jax.nn.log_softmax(Kosmos2(config).apply(*features)))
    found = []
    for prompt in prompts:
        tokens, slots = (jnp.asarray(x)[None] for x in (prompt.ids, prompt.image_slots))
        positions = jnp.arange(tokens.shape[1])[None]
        images = jnp.asarray(np.stack(prompt.images))[None]
        ones = jnp.ones_like(tokens)
        found.append(
            np.asarray(apply({"params": params}, tokens, positions, ones, images, slots))[0]
        )
    return np.concatenate(found)


def _divergence(expected: np.ndarray, got: np.ndarray) -> dict[str, float]:
    import numpy as np

    probabilities = np.exp(expected)
    return {
        "mean": float((probabilities * (expected - got)).sum(-1).mean()),
        "float32_entropy": float(-(probabilities * expected).sum(-1).mean()),
    }


if __name__ == "__main__":
    sys.exit(main())
