"""How long the main job takes, beside TransformerLens and beside plain PyTorch.

::

    python -m tests.benchmarks.foundation [--json PATH] [--repeats 5] [--threads 1]

A random model of GPT-2 small's shape (12 layers, 12 heads, d 768, vocabulary 50257), two pairs of
16 tokens that differ at token 10, float32. Every contender answers the same question and the
answers are compared before anything is timed; then all take turns, and medians are printed: wall
time, and processor time for when the machine has other work.

====================  ==========================================================================
all heads             activation patching of z, 144 cells, all positions
  nnattr              `activation_patching`, local
  TransformerLens     ``get_act_patch_attn_head_out_all_pos`` on its bridge; its cache holds z only
  hook loop           one hooked forward per cell, unembedding the last token only
attribution patching  all 144 cells at once
  nnattr              `attribution_patching`, local
  by hand             two forwards and one backward for z alone, frozen weights, last token only
====================  ==========================================================================
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import nnattr
from nnattr import LogitDiff, Model, Task
from tests.tiny import tiny_tokenizer

TOKENS, DIFFERS, RIGHT, WRONG = 16, 10, 40_000, 45_000
TARGETS = (("all heads", "TransformerLens", 1.0), ("attribution patching", "by hand", 1.25))

Contender = Callable[[], Tensor]


class Timing(NamedTuple):
    """Seconds of each repeat: on the wall, and of this process."""

    wall: list[float]
    processor: list[float]


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model, task = ingredients(Path(folder))
        sweep = {
            "nnattr": lambda: ours(nnattr.activation_patching, model, task),
            "TransformerLens": transformer_lens_sweep(Path(folder), task),
            "hook loop": lambda: hook_loop(model.nn._module, task),
        }
        attribution = {
            "nnattr": lambda: ours(nnattr.attribution_patching, model, task),
            "by hand": lambda: by_hand(model.nn._module, task),
        }
        differences = {
            "all heads": compare(sweep),
            "attribution patching": compare(attribution),
        }
        seconds = {
            "all heads": take_turns(sweep, options.repeats),
            "attribution patching": take_turns(attribution, options.repeats),
        }
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "threads": options.threads,
        "dtype": "float32",
        "versions": {
            name: version(name)
            for name in ("nnattr", "nnsight", "torch", "transformers", "transformer-lens")
        },
        "largest relative difference": differences,
        "seconds": seconds,
    }
    show(report)
    if options.json:
        seconds = {
            question: {name: timing._asdict() for name, timing in rows.items()}
            for question, rows in report["seconds"].items()
        }
        options.json.write_text(json.dumps({**report, "seconds": seconds}, indent=1))


def ingredients(folder: Path) -> tuple[Model, Task]:
    """The random model, saved so that TransformerLens finds the same weights, and two pairs."""
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config()).eval()
    with quiet():
        module.save_pretrained(folder)
    tokenizer = tiny_tokenizer(module.config.vocab_size)
    tokenizer.save_pretrained(folder)
    model = nnattr.load(folder, device="cpu", backend="local")
    rows = [[f"w{3000 + 100 * row + i}" for i in range(TOKENS)] for row in range(2)]
    other = [[*row[:DIFFERS], f"w{9000 + i}", *row[DIFFERS + 1 :]] for i, row in enumerate(rows)]
    clean, corrupted = ([" ".join(row) for row in side] for side in (rows, other))
    answers, wrong = [f"w{RIGHT}"] * 2, [f"w{WRONG}"] * 2
    task = Task.from_pairs(
        clean, corrupted, [f" {a}" for a in answers], [f" {a}" for a in wrong],
        tokenizer=model.tokenizer,
    )  # fmt: skip
    assert task.width == TOKENS
    return model, task


def difference(logits: Tensor) -> Tensor:
    """The logit difference [example] at the last position."""
    return logits[:, -1, RIGHT] - logits[:, -1, WRONG]


def ours(method: Callable[..., nnattr.Scores], model: Model, task: Task) -> Tensor:
    """Raw scores [layer, head, example]."""
    scores = method(model, task, LogitDiff(), site="z")
    return torch.tensor(scores.raw.transpose("layer", "head", "example").to_numpy())


def transformer_lens_sweep(folder: Path, task: Task) -> Contender:
    """The sweep by TransformerLens, with the bridge already booted."""
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    with quiet():
        bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    bridge.eval()

    def sweep() -> Tensor:
        with quiet(), torch.no_grad():
            _, cache = bridge.run_with_cache(
                task.clean_tokens.ids, names_filter=lambda name: name.endswith("attn.hook_z")
            )
            found = patching.get_act_patch_attn_head_out_all_pos(
                bridge, task.corrupted_tokens.ids, cache, difference, reduce="none", baseline=True
            )
        return found.values - found.baseline

    return sweep


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of the peer."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def forward(module: Any, ids: Tensor) -> Tensor:
    """The metric [example] of one forward pass."""
    return difference(module(ids, use_cache=False, logits_to_keep=1).logits)


@contextlib.contextmanager
def hooked(module: Any, hook: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Show every layer's z to ``hook(layer, z)``, which may return another."""

    def before(layer: int) -> Callable[[Any, tuple[Tensor]], tuple[Tensor] | None]:
        def call(_: Any, args: tuple[Tensor]) -> tuple[Tensor] | None:
            new = hook(layer, args[0])
            return None if new is None else (new,)

        return call

    handles = [
        block.attn.c_proj.register_forward_pre_hook(before(layer))
        for layer, block in enumerate(module.transformer.h)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hook_loop(module: Any, task: Task) -> Tensor:
    """One forward per head with its z taken from the clean run."""
    clean: dict[int, Tensor] = {}
    layers, heads = module.config.n_layer, module.config.n_head
    width = module.config.n_embd // heads
    found = torch.zeros(layers, heads, len(task))
    with torch.no_grad():
        with hooked(module, lambda layer, z: clean.update({layer: z.clone()})):
            forward(module, task.clean_tokens.ids)
        before = forward(module, task.corrupted_tokens.ids)
        for layer in range(layers):
            for head in range(heads):
                columns = slice(head * width, (head + 1) * width)

                def patch(at: int, z: Tensor, layer: int = layer, columns: slice = columns) -> Any:
                    if at != layer:
                        return None
                    z = z.clone()
                    z[..., columns] = clean[layer][..., columns]
                    return z

                with hooked(module, patch):
                    found[layer, head] = forward(module, task.corrupted_tokens.ids) - before
    return found


def by_hand(module: Any, task: Task) -> Tensor:
    """Two forwards, one backward with respect to z."""
    heads = module.config.n_head
    clean: list[Tensor] = []
    live: list[Tensor] = []
    with torch.no_grad(), hooked(module, lambda layer, z: clean.append(z)):
        forward(module, task.clean_tokens.ids)

    def open_graph(_: Any, args: Any, output: Tensor) -> Tensor:
        return output.requires_grad_(True)

    handle = module.transformer.wte.register_forward_hook(open_graph)
    try:
        with hooked(module, lambda layer, z: live.append(z)):
            metric = forward(module, task.corrupted_tokens.ids)
    finally:
        handle.remove()
    slopes = torch.autograd.grad(metric.sum(), live)
    return torch.stack(
        [
            ((other - own.detach()) * slope).unflatten(-1, (heads, -1)).sum((1, 3)).T
            for other, own, slope in zip(clean, live, slopes, strict=True)
        ]
    )


def compare(contenders: dict[str, Contender]) -> float:
    """The largest difference from the first contender's answer, in units of the largest effect.

    Raises:
        SystemExit: they do not answer alike.
    """
    answers = [contender() for contender in contenders.values()]
    size = float(answers[0].abs().max())
    worst = max(float((answer - answers[0]).abs().max()) for answer in answers) / size
    if not worst < 1e-3:
        raise SystemExit(f"{', '.join(contenders)} differ by {worst:.1e} of the largest effect.")
    return worst


def take_turns(contenders: dict[str, Contender], repeats: int) -> dict[str, Timing]:
    """Wall and processor seconds of each contender; they take turns in an order that rotates."""
    names = list(contenders)
    timings = {name: Timing([], []) for name in names}
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wall, processor = time.perf_counter(), time.process_time()
            contenders[name]()
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].processor.append(time.process_time() - processor)
    return timings


def show(report: dict[str, Any]) -> None:
    """The table, with our ratio to each contender, and whether the targets are met."""
    print(f"{report['machine']}; {report['threads']} thread(s); {report['dtype']}")
    print(", ".join(f"{name} {number}" for name, number in report["versions"].items()))
    print("\nmedian seconds, wall and processor; ours / it\n")
    print(f"{'':<22}{'contender':<17}{'wall':>8}{'(range)':>18}{'ratio':>7}{'cpu':>9}{'ratio':>7}")
    for question, rows in report["seconds"].items():
        for name, timing in rows.items():
            wall, cpu = statistics.median(timing.wall), statistics.median(timing.processor)
            spread = f"({min(timing.wall):.3f}-{max(timing.wall):.3f})"
            ratios = [ratio(rows, name, clock) for clock in ("wall", "processor")]
            head = question if name == "nnattr" else ""
            print(
                f"{head:<22}{name:<17}{wall:>8.3f}{spread:>18}{ratios[0]:>7.2f}"
                f"{cpu:>9.3f}{ratios[1]:>7.2f}"
            )
    print()
    for question, peer, limit in TARGETS:
        rows = report["seconds"][question]
        found = ratio(rows, peer, "wall")
        verdict = "met" if found <= limit else "NOT MET"
        equal = report["largest relative difference"][question]
        print(f"{question}: {found:.2f} of {peer}, target {limit}: {verdict}; equal to {equal:.0e}")


def ratio(rows: dict[str, Timing], peer: str, clock: str) -> float:
    """Our median over the peer's, by one clock."""
    mine, its = (statistics.median(getattr(rows[name], clock)) for name in ("nnattr", peer))
    return mine / its


if __name__ == "__main__":
    main()
