"""What exact patching costs, beside its floor, full passes, TransformerLens and a hook loop.

::

    python -m tests.benchmarks.engine [--json PATH] [--repeats 5] [--threads 1] [--quick | --real]

Random models of two shapes, or the real model, float32, pairs that differ at one token. Times are
processor seconds, so that other work on the machine does not count, and medians. Where all layers
would take long, everybody is asked for the cells of a few. Everybody's answers are compared on some
cells.

==============  ================================================================================
ours            the job of `activation_patching`, every cell of these layers
full            the same with ``engine="full"``, in batches
TransformerLens ``patching.generic_activation_patch`` on its bridge
hook loop       one hooked forward per cell, last token unembedded
floor           the multiply-adds that exact patching needs at all, at the rate at which this
                machine multiplies matrices of those sizes beside each sweep of ours (`floor`)
==============  ================================================================================

For the three in the middle a cell is a full pass, whatever it patches. So their passes are timed
once for each model, length and number of pairs, on heads of one layer, and multiplied: by the
cells that differ, and by one for each of the two runs that they need first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import nnattr
from nnattr import LogitDiff, Model, Task, pretrained
from nnattr.cli.demo import same_layout
from nnattr.jobs.study import Study
from nnattr.methods.patching.activation_patching import patching_job
from nnattr.runs.portions import CPU_TOKENS
from tests.benchmarks.foundation import quiet
from tests.tiny import tiny_tokenizer

#: (tokens, first differing token)
LENGTHS = ((16, 10), (64, 40), (128, 120))
#: (site, positions), and what the table calls their scores.
QUESTIONS = {
    ("z", "all"): "each head",
    ("z", "each"): "each head and position",
    ("resid_pre", "each"): "`resid_pre`, each position",
}
HEADER = """\
| model | scores | tokens (first that differs) | pairs | layers | ours | floor | `engine="full"` \
| TransformerLens | hook loop |
|---|---|---|---|---|---|---|---|---|---|"""
#: The layer whose cells full passes are timed on.
LAYER = 1
#: The multiply-adds of a sweep above which only some layers are asked for.
MOST = 2.5e11
#: The words whose logits are compared, as ids and in the names of the tokens.
RIGHT, WRONG = 30_000, 31_000


def gpt2(layers: int = 12, heads: int = 12) -> Any:
    """GPT-2 small's shape."""
    return GPT2LMHeadModel(GPT2Config(n_layer=layers, n_head=heads))


def llama() -> Any:
    """A Llama with grouped queries: 16 layers, 16 heads, 4 key/value heads, d 1024."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=4,
            vocab_size=32_000,
        )
    )


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="z at all positions of GPT-2 only")
    which.add_argument("--real", action="store_true", help="heads of SmolLM2-135M for IOI only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": options.threads,
        "versions": {n: version(n) for n in ("nnattr", "nnsight", "torch", "transformer-lens")},
        "rows": [],
    }
    rows = real(options.repeats) if options.real else table(options.repeats, options.quick)
    for row in rows:
        report["rows"].append({**row, "load": os.getloadavg()})
        keep(report, options.json)
    if not options.real:
        report["exponents"] = exponents()
    keep(report, options.json)
    print(json.dumps({k: v for k, v in report.items() if k != "rows"}, indent=1))


def keep(report: dict[str, Any], path: Path | None) -> None:
    """Write what there is so far: the whole takes an hour."""
    if path:
        path.write_text(json.dumps(report, indent=1))


def table(repeats: int, short: bool) -> Iterator[dict[str, Any]]:
    """The rows of the table, printed as they come."""
    print(HEADER)
    for name, make in {"GPT-2 small": gpt2, **({} if short else {"Llama": llama})}.items():
        with tempfile.TemporaryDirectory() as folder:
            model = saved(make(), Path(folder))
            for tokens, differs in LENGTHS:
                for n in (2, 8):
                    task = pairs(model, tokens, differs, n)
                    others = passes(Ask(model, task, "z", "all", [LAYER]), folder, repeats)
                    for site, positions in list(QUESTIONS)[: 1 if short else None]:
                        layers = asked(model, task, site, positions)
                        case = {"shape": name, "site": site, "positions": positions}
                        case |= {"tokens": tokens, "differs": differs, "pairs": n}
                        case |= {"layers": layers, "of": model.n_layers}
                        case |= Ask(model, task, site, positions, layers).row(repeats, others)
                        show(case)
                        yield case


def real(repeats: int) -> Iterator[dict[str, Any]]:
    """Every head of the real model, for pairs of IOI of one layout."""
    print(HEADER)
    model = nnattr.load(pretrained.NAME, device="cpu", backend="local")
    ioi = same_layout(model.tokenizer, 8, 0)
    for n in (2, 8):
        task = ioi[:n]
        middle = Ask(model, task, "z", "all", [model.n_layers * 2 // 3])
        others = passes(middle, str(pretrained.folder()), repeats)
        ask = Ask(model, task, "z", "all")
        case = {"shape": model.name, "site": "z", "positions": "all", "tokens": task.width}
        case |= {"differs": ask.start, "pairs": n, "layers": ask.layers, "of": model.n_layers}
        case |= ask.row(repeats, others)
        show(case)
        yield case


def asked(model: Model, task: Task, site: str, positions: str) -> list[int]:
    """The layers whose cells are asked for: all, two whose mean is the middle, or a middle one."""
    every = model.n_layers
    some = [list(range(every)), [every // 4, every - 1 - every // 4], [every // 2]]
    if model.architecture == "gpt2" and (site, positions) == ("z", "all"):
        return some[0]
    affordable = (it for it in some if sum(adds(Ask(model, task, site, positions, it))) < MOST)
    return next(affordable, some[-1])


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    everywhere = len(row["layers"]) == row["of"]
    cells = [
        row["shape"],
        QUESTIONS[row["site"], row["positions"]],
        f"{row['tokens']} ({row['differs']})",
        str(row["pairs"]),
        "all" if everywhere else ", ".join(map(str, row["layers"])),
        f"{row['ours']:.1f}",
        f"{row['floor']:.1f} ({row['times the floor']:.2f})",
    ]
    for peer in ("full", "TransformerLens", "hook loop"):
        seconds = f"{row[peer]:.3g}" if row[peer] < 1000 else f"{row[peer]:.0f}"
        cells.append(f"{seconds} ({row[peer] / row['ours']:.1f}x)")
    print("| " + " | ".join(cells) + " |", flush=True)


def saved(module: Any, folder: Path) -> Model:
    """The model, written where TransformerLens finds the same weights."""
    with quiet():
        module.eval().save_pretrained(folder)
    tiny_tokenizer(module.config.vocab_size).save_pretrained(folder)
    return nnattr.load(folder, device="cpu", backend="local")


def pairs(model: Model, tokens: int, differs: int, n: int) -> Task:
    """Pairs of prompts that differ at one token."""
    rows = [[f"w{3000 + 200 * row + i}" for i in range(tokens)] for row in range(n)]
    other = [[*row[:differs], f"w{9000 + i}", *row[differs + 1 :]] for i, row in enumerate(rows)]
    clean, corrupted = ([" ".join(row) for row in side] for side in (rows, other))
    answers = [f" w{RIGHT}"] * n, [f" w{WRONG}"] * n
    return Task.from_pairs(clean, corrupted, *answers, tokenizer=model.tokenizer)


class Ask:
    """One question: a model, pairs, a site, positions and layers."""

    def __init__(
        self, model: Model, task: Task, site: Any, positions: Any, layers: list[int] | None = None
    ) -> None:
        self.model, self.task, self.site, self.positions = model, task, site, positions
        self.layers = list(range(model.n_layers)) if layers is None else layers
        differing = (task.clean_tokens.ids != task.corrupted_tokens.ids).any(0)
        self.start = int(differing.int().argmax())
        self.places = task.width - self.start if positions == "each" else 1
        self.units = model.n_heads if site == "z" else 1
        encode = partial(model.tokenizer.encode, add_special_tokens=False)
        sides = (task.answers, task.wrong_answers)
        self.words = [torch.tensor([encode(row[0]) for row in side]) for side in sides]

    def difference(self, logits: Tensor) -> Tensor:
        """The metric, as the peers compute it [example]."""
        right, wrong = (logits[:, -1].gather(1, ids)[:, 0] for ids in self.words)
        return right - wrong

    def row(self, repeats: int, others: dict[str, tuple[float, float]]) -> dict[str, Any]:
        """Processor seconds of everybody, after a comparison."""
        floors, times = [floor(self)], []
        answer = torch.empty(0)
        for _ in range(repeats):  # side by side: the machine's speed changes with its other work
            seconds, answer = spent(self.ours)
            times.append(seconds)
            floors.append(floor(self))
        hooks = Hooks(self, self.cells())
        hooks.both_runs()
        agree("hook loop", hooks.patched(), self.of_cells(answer), answer)
        ratios = [2 * t / sum(pair) for t, pair in zip(times, pairwise(floors), strict=True)]
        number = len(self.layers) * self.units * self.places
        return {
            "ours": statistics.median(times),
            "range": (min(times), max(times)),
            "floor": statistics.median(floors),
            "times the floor": statistics.median(ratios),
            **{name: first + number * each for name, (first, each) in others.items()},
        }

    def ours(self, engine: str = "suffix") -> Tensor:
        """Raw scores [example, layer, unit, spot] of all cells of the layers."""
        study = Study(
            patching_job, "activation_patching", True, self.model, self.task, LogitDiff(),
            self.site, self.positions, "denoising", False, engine,
        )  # fmt: skip
        outcome = self.model.run(patching_job, study.payload(self.layers), label=engine)
        return outcome.values["change"]

    def cells(self) -> list[dict[str, int]]:
        """Two cells of the first layer, as those that go cell by cell name them."""
        ends = ({"pos": self.start}, {"pos": self.task.width - 1})
        places = ends if self.positions == "each" else ({}, {})
        heads = ({"head": 0}, {"head": self.units - 1}) if self.units > 1 else ({}, {})
        return [place | head for place, head in zip(places, heads, strict=True)]

    def of_cells(self, answer: Tensor) -> Tensor:
        """The scores of these cells [example, cell]."""
        cells = [(cell.get("head", 0), cell.get("pos", 0)) for cell in self.cells()]
        return torch.stack([answer[:, 0, unit, spot] for unit, spot in cells], 1)


def passes(ask: Ask, folder: str, repeats: int) -> dict[str, tuple[float, float]]:
    """Seconds of those that run full passes: for both plain runs, and for each cell."""
    answer = ask.ours()
    cells = ask.cells()[:1]
    right = ask.of_cells(answer)[:, :1]
    fill = CPU_TOKENS // (ask.units * ask.task.width)  # pairs that fill a batch
    n = min(max(1, fill), len(ask.task))
    few = Ask(ask.model, ask.task[:n], ask.site, ask.positions, ask.layers)
    batches = [spent(lambda: few.ours("full")) for _ in range(repeats)]
    agree("full", batches[0][1], answer[:n], answer)
    row = statistics.median(seconds for seconds, _ in batches) / (n * (2 + ask.units))
    found = {"full": (2 * len(ask.task) * row, len(ask.task) * row)}
    lens = TransformerLens(ask, cells, folder)
    contenders = {"TransformerLens": lens, "hook loop": Hooks(ask, cells)}
    for name, contender in contenders.items():
        first, each = [], []
        for _ in range(repeats):
            first.append(spent(contender.both_runs)[0])
            seconds, theirs = spent(contender.patched)
            agree(name, theirs, right, answer)
            each.append(seconds)
        found[name] = statistics.median(first), statistics.median(each)
    return found


def agree(name: str, theirs: Tensor, right: Tensor, answer: Tensor) -> None:
    """Stop if someone answers otherwise, beside the largest of the whole answer."""
    gap = float((theirs - right).abs().max())
    if gap > 1e-3 * float(answer.abs().max()):
        raise SystemExit(f"{name} answers otherwise, by {gap:.1e}.")


class TransformerLens:
    """Cells by TransformerLens, on a bridge that is already booted."""

    def __init__(self, ask: Ask, cells: list[dict[str, int]], folder: str) -> None:
        import pandas as pd
        from transformer_lens.model_bridge import TransformerBridge

        self.ask = ask
        with quiet():
            self.bridge = TransformerBridge.boot_transformers(folder, device="cpu").eval()
        self.index = pd.DataFrame([{"layer": ask.layers[0], **cell} for cell in cells])

    def both_runs(self) -> Tensor:
        """Keep the clean run's z, and measure the other run."""
        tokens = self.ask.task.clean_tokens.ids
        with quiet(), torch.no_grad():
            _, self.cache = self.bridge.run_with_cache(
                tokens, names_filter=lambda name: "attn.hook_z" in name
            )
            self.before = self.ask.difference(self.bridge(self.ask.task.corrupted_tokens.ids))
        return self.before

    def patched(self) -> Tensor:
        """The cells [example, cell]."""
        from transformer_lens import patching

        with quiet(), torch.no_grad():
            found = patching.generic_activation_patch(
                self.bridge, self.ask.task.corrupted_tokens.ids, self.cache, self.ask.difference,
                reduce="none", patch_setter=patching.layer_head_vector_patch_setter,
                activation_name="z", index_df=self.index,
            )  # fmt: skip
        values: Any = found if isinstance(found, Tensor) else found.values
        return values.T - self.before[:, None]


class Hooks:
    """Cells by a hooked forward for each."""

    def __init__(self, ask: Ask, cells: list[dict[str, int]]) -> None:
        self.ask, self.cells, self.module = ask, cells, ask.model.nn._module
        self.at, _, _ = ask.model.places(ask.site)[ask.layers[0]]

    def both_runs(self) -> Tensor:
        """Keep the clean run's site, and measure the other run."""

        def keep(value: Tensor) -> Tensor:
            self.clean = value.clone()
            return value

        self.run(self.ask.task.clean_tokens.ids, keep)
        self.before = self.run(self.ask.task.corrupted_tokens.ids, None)
        return self.before

    def patched(self) -> Tensor:
        """The cells [example, cell]."""
        ids = self.ask.task.corrupted_tokens.ids
        hooks = (partial(self.patch, **cell) for cell in self.cells)
        return torch.stack([self.run(ids, hook) - self.before for hook in hooks], 1)

    @torch.no_grad()
    def run(self, ids: Tensor, hook: Callable[[Tensor], Tensor] | None) -> Tensor:
        """The metric, with what enters the site's module changed by a hook."""
        handle = self.module.get_submodule(self.at).register_forward_pre_hook(
            lambda _, args: (hook(args[0]), *args[1:]) if hook else None
        )
        with handle:
            return self.ask.difference(self.module(ids, use_cache=False, logits_to_keep=1).logits)

    def patch(self, value: Tensor, pos: int | None = None, head: int | None = None) -> Tensor:
        """The value with one cell of the clean run's."""
        new, size = value.clone(), self.ask.model.d_head
        places = slice(None) if pos is None else slice(pos, pos + 1)
        columns = slice(None) if head is None else slice(head * size, (head + 1) * size)
        new[:, places, columns] = self.clean[:, places, columns]
        return new


def spent(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Processor seconds, and the answer."""
    started = time.process_time()
    answer = work()
    return time.process_time() - started, answer


def floor(ask: Ask) -> float:
    """The seconds of the multiply-adds without which there is no exact answer, measured now."""
    model, width = ask.model, ask.task.width
    d, tokens = model.config.hidden_size, width - ask.start
    rows = min(len(ask.task) * ask.units, CPU_TOKENS // tokens)
    dense, looks = adds(ask)
    return dense / dense_rate(rows * tokens, d, max(inside(model).values()) // d) + (
        looks / looking_rate(rows * model.n_heads, tokens, model.d_head, width)
    )


def inside(model: Model) -> dict[str, int]:
    """The sizes of a layer's matrices."""
    layer = model.nn._module.get_submodule(f"{model.spec.layers}.0")
    return {name: p.numel() for name, p in layer.named_parameters() if p.ndim > 1}


def adds(ask: Ask) -> tuple[float, float]:
    """These multiply-adds: with weights, and of queries with keys and patterns with values.

    Per patched row: the entry layer's MLP (z) or all of it (resid), all layers above, on the tokens
    from the patch on; of the last layer keys and values of these, and the rest for the last token;
    attention's products with all earlier keys. Besides the base run whole and the source run from
    where they differ. No unembedding, no norms, no nonlinearities, no copies.
    """
    model, task = ask.model, ask.task
    sizes = inside(model)
    attention = sum(size for name, size in sizes.items() if "attn" in name)
    mlp = sum(sizes.values()) - attention
    d, d_kv = model.config.hidden_size, model.n_kv_heads * model.d_head
    n, width, layers = len(task), task.width, model.n_layers
    start, units = ask.start, ask.units
    begins = [start] if ask.positions == "all" else list(range(start, width))
    dense, looks = n * (2 * width - start) * layers * (attention + mlp), 0.0
    for begin in begins:
        tokens = width - begin
        pairs = 2 * d * (begin + tokens / 2)  # a token's queries with earlier keys, and values
        last = tokens * 2 * d * d_kv + (attention - 2 * d * d_kv) + mlp
        for at in ask.layers:
            above = max(0, layers - at - 2) * tokens * (attention + mlp)
            looked = max(0, layers - at - 2) * tokens * pairs
            if at < layers - 1:
                above, looked = above + last, looked + pairs
            if ask.site == "z":
                needed = (tokens if at < layers - 1 else 1) * (mlp + d * model.d_head)
                if at == layers - 1 and ask.positions == "each" and begin < width - 1:
                    needed = 0  # it cannot reach the metric
            else:
                needed = tokens * (attention + mlp) if at < layers - 1 else last
                looked += tokens * pairs if at < layers - 1 else pairs
            dense += n * units * (needed + above)
            looks += n * units * looked
    return dense, looks


def dense_rate(rows: int, d: int, wide: int) -> float:
    """Multiply-adds a second of [rows, d] @ [d, wide] and back."""
    x, there, back = torch.randn(rows, d), torch.randn(d, wide), torch.randn(wide, d)
    return 2 * rows * d * wide / typical(lambda: (x @ there) @ back)


def looking_rate(batch: int, tokens: int, d_head: int, keys: int) -> float:
    """Multiply-adds a second of attention's two products."""
    q, k = torch.randn(batch, tokens, d_head), torch.randn(batch, keys, d_head)
    return 2 * batch * tokens * d_head * keys / typical(lambda: q @ k.mT @ k)


def typical(work: Callable[[], Tensor]) -> float:
    """The median processor seconds of a few."""
    return statistics.median(spent(work)[0] for _ in range(12))


def exponents() -> dict[str, float]:
    """How our cost grows: the slope of its logarithm against that of each size."""
    found: dict[str, float] = {}
    for what, sizes in {
        "layers": (3, 6, 12),
        "heads": (6, 12, 24),
        "length": (16, 32, 64),
        "pairs": (2, 4, 8),
    }.items():
        seconds = []
        for size in sizes:
            given = {"layers": 6, "heads": 12, "length": 16, "pairs": 2, what: size}
            module = gpt2(given["layers"], given["heads"]).eval().requires_grad_(False)
            model = nnattr.load(module, tokenizer=tiny_tokenizer(50_257), backend="local")
            task = pairs(model, given["length"], given["length"] * 5 // 8, given["pairs"])
            ask = Ask(model, task, "z", "all")
            ask.ours()
            seconds.append(min(spent(ask.ours)[0] for _ in range(2)))
        found[what] = round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 2)
    return found


if __name__ == "__main__":
    main()
