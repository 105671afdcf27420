"""Compares Kosmos-2 of full size with transformers' on one prompt with a picture, on the CPU.

Every tensor is random, LayerNorms and biases too. transformers runs first; then its weights move
to our model tensor by tensor, so that never much more than one model is in memory (about 7 GiB).
The last line printed is JSON. The exit status is 1 if a bar is missed: scores within 1e-5 of the
largest, and the same greedy tokens under the rule against repeated 3-grams.

    python tools/parity.py --size full
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kosmos2_jax.startup import prepare_environment

prepare_environment()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from kosmos2_jax.config import IMAGE_MEAN, IMAGE_STD, Kosmos2Config, preset  # noqa: E402
from kosmos2_jax.inference.decoding import generate  # noqa: E402
from kosmos2_jax.inference.ngram import HUGGING_FACE as HUGGING_FACE_RULE  # noqa: E402
from kosmos2_jax.inference.prompt_batch import Prompt, batch_prompts  # noqa: E402
from kosmos2_jax.inference.sampling import SamplingConfig  # noqa: E402
from kosmos2_jax.interop.hf_config import config_json  # noqa: E402
from kosmos2_jax.interop.layout import nest  # noqa: E402
from kosmos2_jax.interop.names import HUGGING_FACE  # noqa: E402
from kosmos2_jax.models.kosmos2 import Kosmos2  # noqa: E402

MAX_REL_LOGIT_DIFF = 1e-5
NGRAM = 3
SIZES = {"full": "kosmos2", "small": "tiny"}
_PAD = 1
_KIB, _GIB = 2**10, 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full", help="of the model")
    parser.add_argument("--tokens", type=int, default=16, help="to write greedily")
    parser.add_argument("--seed", type=int, default=0, help="of weights, picture and prompt")
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")

    config = preset(SIZES[args.size])
    prompt = random_prompt(config, np.random.default_rng(args.seed))
    with stage("build transformers' model"):
        model = random_reference(config, args.seed)
    with stage("its scores"):
        expected = reference_logits(model, prompt)
    with stage(f"its {args.tokens} tokens"):
        expected_tokens = reference_tokens(model, prompt, args.tokens)
    with stage("move its weights to ours"):
        params = take_params(model, config)
        del model
    with stage("our scores"):
        logits = our_logits(config, params, prompt)
    with stage(f"our {args.tokens} tokens"):
        tokens = our_tokens(config, params, prompt, args.tokens)
    return report(expected, logits, expected_tokens, tokens)


def report(
    expected: np.ndarray, logits: np.ndarray, expected_tokens: list[int], tokens: list[int]
) -> int:
    """Prints what was found, JSON last; gives the exit status."""
    largest = float(np.abs(expected).max())
    difference = float(np.abs(logits - expected).max()) / largest
    equal = tokens == expected_tokens
    print(f"scores: {expected.shape}, spread {expected.std():.3f}, largest {largest:.3f}")
    print(f"transformers wrote {expected_tokens}")
    print(f"ours wrote         {tokens}")
    found = {
        "max_rel_logit_diff": difference,
        "greedy_tokens_equal": equal,
        "peak_gib": round(peak_gib(), 2),
    }
    print(json.dumps(found), flush=True)
    return 0 if equal and difference < MAX_REL_LOGIT_DIFF else 1


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Prints how long a part took and the peak of memory so far."""
    print(f"{name} ...", flush=True)
    start = time.monotonic()
    yield
    print(f"    {time.monotonic() - start:.1f} s, peak {peak_gib():.2f} GiB", flush=True)


def peak_gib() -> float:
    """Most memory this process has had in RAM, in GiB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the peak of the process that started us
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * _KIB / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB / _GIB


def random_prompt(config: Kosmos2Config, rng: np.random.Generator) -> Prompt:
    """`<s> <image> slots </image> <grounding>` and three words, with a picture of noise."""
    latents, size = config.resampler.num_latents, config.vision.image_size
    # The ids before the location tokens end with </doc> <image> </image> ... <grounding>.
    grounding = config.decoder.vocab_size - config.grid_size**2 - 1
    slot_ids = range(4, 4 + latents)
    words = rng.integers(4, grounding - 11, 3)
    ids = [0, grounding - 9, *slot_ids, grounding - 8, grounding, *words]
    slots = [-1, -1, *range(latents), *[-1] * 5]
    picture = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Prompt(np.array(ids, np.int32), np.array(slots, np.int32), (picture,))


# transformers ---------------------------------------------------------------------------------


def random_reference(config: Kosmos2Config, seed: int) -> Any:
    """transformers' model with random values in every tensor; nothing is initialised twice."""
    values = config_json(config)
    with torch.device("meta"):
        model = transformers.Kosmos2ForConditionalGeneration(
            transformers.Kosmos2Config(
                text_config=values["text_config"],
                vision_config=values["vision_config"],
                latent_query_num=values["latent_query_num"],
            )
        )
    model.to_empty(device="cpu")
    model.tie_weights()
    # Buffers are in no checkpoint; made anew, since those of the meta device hold nothing.
    positions = model.text_model.model.embed_positions
    positions.make_weights(
        positions.num_positions + positions.offset, positions.embedding_dim, positions.padding_idx
    )
    embeddings = model.vision_model.model.embeddings
    embeddings.position_ids.copy_(torch.arange(config.vision.num_tokens)[None])

    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for entry in HUGGING_FACE.entries(config):
            mean, std = spread(entry.ours, entry.shape)
            parameters.pop(entry.foreign).normal_(mean, std, generator=generator)
    if parameters:
        raise AssertionError(f"tensors left as they were: {', '.join(parameters)}")
    return model.eval()


def spread(path: str, shape: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation that keep attention neither uniform nor one-hot."""
    if path.endswith("/scale"):
        return 1.0, 0.3
    if path.endswith("/bias"):
        return 0.0, 0.3
    if path.endswith("/kernel"):
        # The resampler reads vectors of length 1, so that its projection needs larger weights.
        fan_in = 1 if "projection" in path else int(np.prod(shape[:-1]))
        gain = 1.5 if path.endswith(("query/kernel", "key/kernel")) else 1.0
        return 0.0, gain * fan_in**-0.5
    if path.endswith("token_embedding"):
        # So small that the tied head does not just prefer the token that was read.
        return 0.0, 0.5 * shape[-1] ** -0.5
    return 0.0, 1.0


def reference_inputs(prompt: Prompt) -> dict[str, Any]:
    """The prompt as transformers wants it."""
    mean, std = np.float32(IMAGE_MEAN), np.float32(IMAGE_STD)
    pixels = (np.stack(prompt.images).astype(np.float32) / 255 - mean) / std
    ids = torch.from_numpy(prompt.ids).long()[None]
    return {
        "pixel_values": torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_embeds_position_mask": torch.from_numpy(prompt.image_slots >= 0).long()[None],
    }


@torch.no_grad()
def reference_logits(model: Any, prompt: Prompt) -> np.ndarray:
    """Scores at every place, [L, V]."""
    return model(**reference_inputs(prompt), use_cache=False).logits[0].numpy()


def reference_tokens(model: Any, prompt: Prompt, count: int) -> list[int]:
    """What transformers writes."""
    output = model.generate(
        **reference_inputs(prompt),
        max_new_tokens=count,
        do_sample=False,
        no_repeat_ngram_size=NGRAM,
        suppress_tokens=[_PAD],
    )
    return output[0, len(prompt.ids) :].tolist()


# Ours -----------------------------------------------------------------------------------------


def take_params(model: Any, config: Kosmos2Config) -> dict[str, Any]:
    """Our parameters; each tensor of `model` is freed as soon as ours exists."""
    tensors = dict(model.named_parameters())
    flat = {}
    for entry in HUGGING_FACE.entries(config):
        tensor = tensors.pop(entry.foreign)
        flat[entry.ours] = jnp.array(entry.to_ours(tensor.detach().numpy()))
        flat[entry.ours].block_until_ready()
        tensor.data = torch.empty(0)
    return nest(flat)


def our_logits(config: Kosmos2Config, params: Any, prompt: Prompt) -> np.ndarray:
    """Scores at every place, [L, V]."""
    tokens = jnp.asarray(prompt.ids)[None]
    positions = jnp.arange(tokens.shape[1])[None]
    images, slots = jnp.asarray(np.stack(prompt.images))[None], jnp.asarray(prompt.image_slots)
    apply = jax.jit(Kosmos2(config).apply)
    ones = jnp.ones_like(tokens)
    return np.asarray(apply({"params": params}, tokens, positions, ones, images, slots[None]))[0]


def our_tokens(config: Kosmos2Config, params: Any, prompt: Prompt, count: int) -> list[int]:
    """What our model writes by the rules of transformers."""
    batch = batch_prompts([prompt], max_length=config.decoder.max_length)
    settings = SamplingConfig(count, NGRAM, HUGGING_FACE_RULE)
    written = jax.device_get(generate(config, params, batch, settings))
    return written.tokens[0, : written.lengths[0]].tolist()


if __name__ == "__main__":
    sys.exit(main())
