"""Times our training step beside transformers' on the same batch, in one process.

On a CPU: a small model in float32. On a GPU: full size in bfloat16, rows of 2,048 packed tokens,
and the share of the chip's peak that each reaches. A step is forward pass, gradient, clipping and
Adam with decoupled decay; dropout is off, since both draw it in their own way. The losses must be
equal before anything is timed. Both then run in turns, and medians are taken, so that what else
the machine does hits both. The last line printed is JSON:

  step_ratio: transformers' milliseconds by ours, of the faster of its two variants (as it is, and
    under torch.compile).
  step_ms: of each, medians. loss: of the first step of each.
  mfu: of each, see `kosmos2_jax.training.flops`; on hardware whose peak is known.
  packing_gain: how many times the target tokens a second our step learns from when it is given
    packed rows (fill `fill_packed`) instead of one example a row (`fill_single`).

    python tools/benchmark_train.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kosmos2_jax.startup import prepare_environment

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    import jax
    import numpy as np

    from kosmos2_jax.config import Kosmos2Config

OURS, PLAIN, COMPILED = "kosmos2_jax", "transformers", "transformers torch.compile"
LOSS_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
LEARNING_RATE = 1e-4
IGNORED = -100  # label that transformers' loss leaves out

Step = Callable[[], Any]  # launches one update; gives what to wait for


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; gives the exit status: 1 if the losses differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=0, help="of a batch (16 on CPU, 8 on GPU)")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds that do not count")
    parser.add_argument("--rounds", type=int, default=9, help="in which all take their turns")
    parser.add_argument("--steps", type=int, default=3, help="of each a round")
    parser.add_argument("--attention", default="auto", help="model.attention of ours")
    parser.add_argument("--remat", default="", help="model.remat of ours")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batch")
    arguments = parser.parse_args(argv)
    prepare_environment()
    # Both share one device's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from kosmos2_jax.training.host_memory import keep_memory

    keep_memory()  # as the trainer does; theirs gains by it too
    on_gpu = jax.default_backend() == "gpu"
    config = _config(on_gpu, arguments)
    rows, length = (arguments.rows or 8, 2048) if on_gpu else (arguments.rows or 16, 128)
    print(json.dumps(_compare(config, rows, length, arguments)))
    return 0


def _config(on_gpu: bool, arguments: argparse.Namespace) -> Kosmos2Config:
    from kosmos2_jax.config import Kosmos2Config, preset

    silent = {"resampler": {"attention_dropout": 0.0}, "attention": arguments.attention}
    if on_gpu:
        return preset("kosmos2").replace(
            decoder={"dropout": 0.0},
            dtype="bfloat16",
            scan_layers=True,
            remat=arguments.remat or "minimal",
            **silent,
        )
    return Kosmos2Config().replace(  # 4.6 million parameters
        vision={"image_size": 64, "patch_size": 8, "hidden_size": 128, "num_layers": 4}
        | {"num_heads": 4, "mlp_dim": 512},
        decoder={"vocab_size": 2048, "hidden_size": 256, "num_layers": 4, "num_heads": 4}
        | {"mlp_dim": 1024, "max_length": 128, "dropout": 0.0},
        remat=arguments.remat or "none",
        **{**silent, "resampler": {"attention_dropout": 0.0, "num_latents": 8}},
    )


def _compare(
    config: Kosmos2Config, rows: int, length: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Runs all and gives what is printed."""
    import numpy as np

    rng = np.random.default_rng(arguments.seed)
    whole = _batch(config, rng, rows, length, shortest=length, packed=False)
    single = _batch(config, rng, rows, length, shortest=length // 8, packed=False)
    packed = _batch(config, rng, rows, length, shortest=length // 8, packed=True)
    model = _reference(config, arguments.seed)
    ours = _OurStep(config, _params(model, config))
    placed = ours.place(whole)
    steps: dict[str, Step] = {OURS: lambda: ours(placed), PLAIN: _their_step(model, whole, False)}
    if not arguments.no_compile:
        steps[COMPILED] = _their_step(model, whole, True)
    losses = {name: float(step()) for name, step in steps.items()}
    # Each trains a model of its own, but transformers' two share theirs: only the first is equal.
    difference = abs(losses[OURS] - losses[PLAIN]) / losses[PLAIN]
    if difference > LOSS_TOLERANCE[config.dtype]:
        sys.exit(f"the losses differ by {difference:.1e}, so that times mean nothing: {losses}")
    rows_of = ours.place(single), ours.place(packed)
    turns = {**steps, "single": lambda: ours(rows_of[0]), "packed": lambda: ours(rows_of[1])}
    times = _take_turns(turns, arguments.warm_up, arguments.rounds, arguments.steps)
    fastest = min(times[name] for name in steps if name != OURS)
    learned = [float(batch["loss_weights"].sum()) for batch in (single, packed)]
    return {
        "step_ratio": fastest / times[OURS],
        "step_ms": {name: times[name] * 1e3 for name in steps},
        "loss": losses,
        "packing_gain": learned[1] / times["packed"] / (learned[0] / times["single"]),
        "fill_single": float((single["segment_ids"] > 0).mean()),
        "fill_packed": float((packed["segment_ids"] > 0).mean()),
        "mfu": _utilisation(config, rows, length, {name: times[name] for name in steps}),
        "rows": rows,
        "length": length,
        "dtype": config.dtype,
    }


def _utilisation(
    config: Kosmos2Config, rows: int, length: int, times: dict[str, float]
) -> dict[str, float]:
    """The share of the chip's peak that each reaches; nothing where the peak is not known."""
    import jax

    from kosmos2_jax.training.flops import chip_of, model_flops, model_flops_utilisation

    chip = chip_of(jax.devices()[0].device_kind)
    if chip is None:
        return {}
    flops = model_flops(config, rows, length, images=rows).total
    return {name: model_flops_utilisation(flops, time, 1, chip) for name, time in times.items()}


def _batch(
    config: Kosmos2Config,
    rng: np.random.Generator,
    rows: int,
    length: int,
    *,
    shortest: int,
    packed: bool,
) -> dict[str, np.ndarray]:
    """Features of rows of random text, a picture at the beginning of each.

    Examples have `shortest` to `length` tokens; a packed row has as many as fit.
    """
    import numpy as np

    latents, size = config.resampler.num_latents, config.vision.image_size
    tokens = rng.integers(4, config.decoder.vocab_size, (rows, length + 1)).astype(np.int32)
    segments, positions = (np.zeros((rows, length), np.int32) for _ in range(2))
    for row in range(rows):
        end, number = 0, 0
        while True:
            count = int(rng.integers(max(shortest, latents + 2), length + 1))
            if number and (not packed or end + count > length):
                break
            number += 1
            segments[row, end : end + count] = number
            positions[row, end : end + count] = np.arange(count)
            end += count
    slots = np.full((rows, length), -1, np.int32)
    slots[:, 1 : latents + 1] = np.arange(latents)
    following = np.pad(segments[:, 1:], ((0, 0), (0, 1)))
    targets_text = np.pad(slots[:, 1:] < 0, ((0, 0), (0, 1)))
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": ((segments > 0) & (following == segments) & targets_text).astype(
            np.float32
        ),
        "positions": positions,
        "segment_ids": segments,
        "image_slots": slots,
        "images": rng.normal(size=(rows, 1, size, size, 3)).astype(np.float32),
    }


def _reference(config: Kosmos2Config, seed: int) -> Any:
    """transformers' model of that architecture, freshly initialised; float32 on its device."""
    import torch
    import transformers

    from kosmos2_jax.interop.hf_config import config_json

    torch.manual_seed(seed)
    values = config_json(config)
    described = transformers.Kosmos2Config(
        text_config=values["text_config"],
        vision_config=values["vision_config"],
        latent_query_num=values["latent_query_num"],
    )
    model = transformers.AutoModelForImageTextToText.from_config(
        described, attn_implementation="sdpa"
    )
    # Without dropout; there is no other difference between the modes.
    return model.eval().to("cuda" if config.dtype == "bfloat16" else "cpu")


def _params(model: Any, config: Kosmos2Config) -> Any:
    """Its weights as our parameters."""
    from kosmos2_jax.interop.layout import nest, stack_layers
    from kosmos2_jax.interop.names import HUGGING_FACE

    found = dict(model.named_parameters())
    params = nest(
        {
            entry.ours: entry.to_ours(found[entry.foreign].detach().cpu().numpy())
            for entry in HUGGING_FACE.entries(config)
        }
    )
    return stack_layers(params, config) if config.scan_layers else params


class _OurStep:
    """The step of the trainer on one device."""

    def __init__(self, config: Kosmos2Config, params: Any) -> None:
        import jax
        import jax.numpy as jnp

        from kosmos2_jax.inference.model import Kosmos2Model
        from kosmos2_jax.partitioning import batch_sharding, make_mesh
        from kosmos2_jax.training.optimizer import OptimizerConfig, make_optimizer
        from kosmos2_jax.training.run_config import RunConfig
        from kosmos2_jax.training.state import TrainState, state_shardings
        from kosmos2_jax.training.step import make_train_step

        run = RunConfig(
            model=config,
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE, warmup_steps=0),
            loss_chunk=256,
        )
        self._mesh = mesh = make_mesh({"data": 1}, jax.devices()[:1])
        optimizer = make_optimizer(run.optimizer)
        shardings = state_shardings(run, optimizer, mesh)
        model = Kosmos2Model(run.model, loss_chunk=run.loss_chunk)
        self._sharding = batch_sharding(mesh)
        self._update = make_train_step(
            model.loss_fn, optimizer, shardings, self._sharding, run.seed
        )

        def begin(params: Any) -> TrainState:
            none = jnp.zeros([], jnp.int32)
            return TrainState(none, params, optimizer.init(params), none)

        self._state = jax.jit(begin, out_shardings=shardings)(params)

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The batch on the device, where transformers' is, too, before anything is timed."""
        from kosmos2_jax.training.processes import global_batch

        return global_batch(batch, self._sharding)

    def __call__(self, batch: dict[str, jax.Array]) -> Any:
        import jax

        with jax.set_mesh(self._mesh):
            self._state, metrics = self._update(self._state, batch)
        return metrics["loss"]


def _their_step(model: Any, batch: dict[str, np.ndarray], compiled: bool) -> Step:
    """transformers' model, torch's clipping and its fused AdamW; autocast for bfloat16."""
    import numpy as np
    import torch

    from kosmos2_jax.training.optimizer import OptimizerConfig

    device = next(model.parameters()).device
    labels = np.where(batch["loss_weights"] > 0, batch["targets"], IGNORED)
    # It shifts labels itself.
    labels = np.concatenate([np.full_like(labels[:, :1], IGNORED), labels[:, :-1]], axis=1)
    pictures = batch["images"][:, 0].transpose(0, 3, 1, 2)
    inputs = {
        "pixel_values": torch.from_numpy(np.ascontiguousarray(pictures)),
        "input_ids": torch.from_numpy(batch["tokens"]).long(),
        "image_embeds_position_mask": torch.from_numpy(batch["image_slots"] >= 0).long(),
        "labels": torch.from_numpy(labels).long(),
    }
    inputs = {name: value.to(device) for name, value in inputs.items()}
    settings = OptimizerConfig()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        LEARNING_RATE,
        (settings.beta1, settings.beta2),
        settings.epsilon,
        settings.weight_decay,
        fused=True,
    )
    run = torch.compile(model) if compiled else model

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = run(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm, foreach=True)
        optimizer.step()
        return loss.detach()

    return step


def _take_turns(steps: dict[str, Step], warm_up: int, rounds: int, number: int) -> dict[str, float]:
    """Median seconds of a step; `number` of each in each round, now forwards, now backwards."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for _ in range(warm_up + rounds):
        for name in names:
            start = time.perf_counter()
            for _ in range(number):
                last = steps[name]()
            float(last)  # waits for the device
            times[name].append((time.perf_counter() - start) / number)
        names.reverse()
    for name, seconds in times.items():
        print(f"{name:28}" + " ".join(f"{1e3 * s:7.1f}" for s in seconds[warm_up:]), "ms")
    return {name: statistics.median(seconds[warm_up:]) for name, seconds in times.items()}


if __name__ == "__main__":
    sys.exit(main())
