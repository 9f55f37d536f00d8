"""What exact patching costs, beside its floor, full passes, TransformerLens and a hook loop.

::

    python -m tests.benchmarks.engine [--json PATH] [--repeats 5] [--threads 1] [--quick]

Random models of two shapes, float32, pairs that differ at one token. Times are processor seconds,
so that other work on the machine does not count; ours are medians. A contender that runs a full
pass for each cell pays the same for every cell: it is timed once on some cells of one layer, and
multiplied by the cells that differ. All answers there are compared first.

==============  ================================================================================
ours            `activation_patching` as it is
full            the same with ``engine="full"``, in batches: one layer, times the layers
TransformerLens ``patching.generic_activation_patch`` on its bridge
hook loop       one hooked forward per cell, last token unembedded
floor           the multiply-adds that exact patching needs at all, at the rate at which this
                machine multiplies matrices of those sizes beside each sweep of ours (`floor`)
==============  ================================================================================
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
from nnattr import LogitDiff, Model, Task
from nnattr.methods.activation_patching import patching_job
from nnattr.methods.study import Study
from tests.benchmarks.foundation import quiet
from tests.tiny import tiny_tokenizer

#: (tokens, first differing token)
LENGTHS = ((16, 10), (64, 40), (128, 120))
QUESTIONS = (("z", "all"), ("z", "each"), ("resid_pre", "each"))
#: The layer whose cells full passes are timed on.
LAYER = 1
#: The words whose logits are compared, as ids and in the names of the tokens.
RIGHT, WRONG = 30_000, 31_000
#: Tokens of the matrices at which the machine's rate is measured.
PASS = 384


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
    parser.add_argument("--quick", action="store_true", help="z at all positions of GPT-2 only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": options.threads,
        "versions": {n: version(n) for n in ("nnattr", "nnsight", "torch", "transformer-lens")},
        "rows": [],
    }
    for row in table(options.repeats, options.quick):
        report["rows"].append({**row, "load": os.getloadavg()})
        keep(report, options.json)
    report["exponents"] = exponents()
    keep(report, options.json)
    print(json.dumps({k: v for k, v in report.items() if k != "rows"}, indent=1))


def keep(report: dict[str, Any], path: Path | None) -> None:
    """Write what there is so far: the whole takes most of an hour."""
    if path:
        path.write_text(json.dumps(report, indent=1))


def table(repeats: int, short: bool) -> Iterator[dict[str, Any]]:
    """The rows of the table, printed as they come."""
    print("| shape | question | tokens | pairs | ours | floor | full | TransformerLens | hooks |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make in {"GPT-2 small": gpt2, **({} if short else {"Llama": llama})}.items():
        with tempfile.TemporaryDirectory() as folder:
            model = saved(make(), Path(folder))
            for site, positions in QUESTIONS[: 1 if short else None]:
                for tokens, differs in LENGTHS:
                    for n in (2, 8):
                        by_position = positions == "each"
                        if (n == 8 and site == "z" and by_position) or (
                            name == "Llama" and (n == 8 or by_position)
                        ):
                            continue  # these would take hours
                        ask = Ask(model, pairs(model, tokens, differs, n), site, positions, folder)
                        case = {"shape": name, "site": site, "positions": positions}
                        case |= {"tokens": tokens, "differs": differs, "pairs": n}
                        case |= ask.row(repeats)
                        show(case)
                        yield case


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    cells = [
        row["shape"],
        f"{row['site']} {row['positions']}",
        f"{row['tokens']} ({row['differs']})",
    ]
    numbers = [f"{row['ours']:.2f}", f"{row['floor']:.2f} (ours {row['times the floor']:.2f}x)"]
    peers = ("full", "TransformerLens", "hook loop")
    ratios = [f"{row[key]:.1f} ({row[key] / row['ours']:.1f}x)" for key in peers]
    print("| " + " | ".join([*cells, str(row["pairs"]), *numbers, *ratios]) + " |", flush=True)


def saved(module: Any, folder: Path) -> Model:
    """The model, written where TransformerLens finds the same weights."""
    with quiet():
        module.eval().save_pretrained(folder)
    tiny_tokenizer(module.config.vocab_size).save_pretrained(folder)
    return nnattr.load(folder, device="cpu", backend="local")


def difference(logits: Tensor) -> Tensor:
    """The metric, as the peers compute it [example]."""
    return logits[:, -1, RIGHT] - logits[:, -1, WRONG]


def pairs(model: Model, tokens: int, differs: int, n: int) -> Task:
    """Pairs of prompts that differ at one token."""
    rows = [[f"w{3000 + 200 * row + i}" for i in range(tokens)] for row in range(n)]
    other = [[*row[:differs], f"w{9000 + i}", *row[differs + 1 :]] for i, row in enumerate(rows)]
    clean, corrupted = ([" ".join(row) for row in side] for side in (rows, other))
    answers = [f" w{RIGHT}"] * n, [f" w{WRONG}"] * n
    return Task.from_pairs(clean, corrupted, *answers, tokenizer=model.tokenizer)


class Ask:
    """One question and its contenders."""

    def __init__(self, model: Model, task: Task, site: Any, positions: Any, folder: str) -> None:
        self.model, self.task, self.site, self.positions = model, task, site, positions
        self.folder = folder
        differing = (task.clean_tokens.ids != task.corrupted_tokens.ids).any(0)
        self.start = int(differing.int().argmax())
        self.places = task.width - self.start if positions == "each" else 1
        self.units = model.n_heads if site == "z" else 1

    def row(self, repeats: int) -> dict[str, Any]:
        """Processor seconds of everybody, after a comparison."""
        answer = self.ours()
        floors, times = [floor(self)], []
        for _ in range(repeats):  # side by side: the machine's speed changes with its other work
            times.append(spent(self.ours)[0])
            floors.append(floor(self))
        ratios = [2 * t / sum(pair) for t, pair in zip(times, pairwise(floors), strict=True)]
        found: dict[str, Any] = {
            "ours": statistics.median(times),
            "range": (min(times), max(times)),
            "floor": statistics.median(floors),
            "times the floor": statistics.median(ratios),
        }
        n, layers = len(self.task), self.model.n_layers
        here = answer[:, LAYER].reshape(n, self.units, -1)  # [example, unit, place]
        first = self.start if self.positions == "each" else 0
        some = here[:, :, first : first + self.sampled].reshape(n, -1)
        scale = layers * self.places / self.sampled
        for name, contender, right, times_all in (
            ("full", self.full, here, layers),
            ("TransformerLens", self.transformer_lens(), some, scale),
            ("hook loop", self.hook_loop, some, scale),
        ):
            seconds, theirs = spent(contender)
            gap = float((theirs.reshape(right.shape) - right).abs().max())
            if gap > 1e-3 * float(answer.abs().max()):
                raise SystemExit(f"{name} answers otherwise, by {gap:.1e}.")
            found[name] = seconds * times_all
        return found

    @property
    def sampled(self) -> int:
        """At how many positions the contenders that go cell by cell are timed."""
        return 1 if self.units > 1 else self.places

    def cells(self) -> list[dict[str, int]]:
        """The cells of one layer that those contenders patch, heads first."""
        each = self.positions == "each"
        places = [{"pos": self.start + i} for i in range(self.sampled)] if each else [{}]
        heads = [{"head": head} for head in range(self.units)] if self.units > 1 else [{}]
        return [{**place, **head} for head in heads for place in places]

    def study(self, engine: str) -> Study:
        """The question as the library asks it."""
        return Study(
            patching_job, "activation_patching", True, self.model, self.task, LogitDiff(),
            self.site, self.positions, "denoising", False, engine,
        )  # fmt: skip

    def ours(self) -> Tensor:
        """Raw scores [example, layer, ...] of all cells."""
        return torch.tensor(self.study("suffix").run().raw.fillna(0).to_numpy())

    def full(self) -> Tensor:
        """The cells of one layer by full passes [example, ...]."""
        payload = self.study("full").payload([LAYER])
        return self.model.run(patching_job, payload, label="full").values["change"]

    def transformer_lens(self) -> Callable[[], Tensor]:
        """Those cells [example, cell] by TransformerLens, with the bridge already booted."""
        import pandas as pd
        from transformer_lens import patching
        from transformer_lens.model_bridge import TransformerBridge

        with quiet():
            bridge = TransformerBridge.boot_transformers(self.folder, device="cpu").eval()
        setters = {
            ("z", "all"): patching.layer_head_vector_patch_setter,
            ("z", "each"): patching.layer_pos_head_vector_patch_setter,
            ("resid_pre", "each"): patching.layer_pos_patch_setter,
        }
        hook = {"z": "attn.hook_z", "resid_pre": "hook_resid_pre"}[self.site]
        index = pd.DataFrame([{"layer": LAYER, **cell} for cell in self.cells()])

        def sweep() -> Tensor:
            with quiet(), torch.no_grad():
                _, cache = bridge.run_with_cache(
                    self.task.clean_tokens.ids, names_filter=lambda name: hook in name
                )
                found = patching.generic_activation_patch(
                    bridge, self.task.corrupted_tokens.ids, cache, difference, reduce="none",
                    patch_setter=setters[self.site, self.positions],
                    activation_name="z" if self.site == "z" else "resid_pre",
                    index_df=index, baseline=True,
                )  # fmt: skip
            baseline: Any = found.baseline
            return (found.values - baseline).T

        return sweep

    def hook_loop(self) -> Tensor:
        """Those cells [example, cell], a hooked forward for each."""
        module, size = self.model.nn._module, self.model.d_head
        at, _, _ = self.model.places(self.site)[LAYER]
        clean: list[Tensor] = []

        def run(ids: Tensor, hook: Callable[[Tensor], Tensor] | None) -> Tensor:
            handle = module.get_submodule(at).register_forward_pre_hook(
                lambda _, args: (hook(args[0]), *args[1:]) if hook else None
            )
            with handle:
                return difference(module(ids, use_cache=False, logits_to_keep=1).logits)

        def keep(value: Tensor) -> Tensor:
            clean.append(value.clone())
            return value

        def patched(value: Tensor, pos: int | None = None, head: int | None = None) -> Tensor:
            new = value.clone()
            places = slice(None) if pos is None else slice(pos, pos + 1)
            columns = slice(None) if head is None else slice(head * size, (head + 1) * size)
            new[:, places, columns] = clean[0][:, places, columns]
            return new

        with torch.no_grad():
            run(self.task.clean_tokens.ids, keep)
            base = self.task.corrupted_tokens.ids
            before = run(base, None)
            hooks = (partial(patched, **cell) for cell in self.cells())
            return torch.stack([run(base, hook) - before for hook in hooks], 1)


def spent(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Processor seconds, and the answer."""
    started = time.process_time()
    answer = work()
    return time.process_time() - started, answer


def floor(ask: Ask) -> float:
    """The seconds of the multiply-adds without which there is no exact answer, measured now.

    Per patched row: the entry layer's MLP (z) or all of it (resid), all layers above, on the tokens
    from the patch on; of the last layer keys and values of these, and the rest for the last token;
    attention's products with all earlier keys. Besides the base run whole and the source run from
    where they differ. No unembedding, no norms, no nonlinearities, no copies.
    """
    model, task = ask.model, ask.task
    layer = model.nn._module.get_submodule(f"{model.spec.layers}.0")
    inside = {name: p.numel() for name, p in layer.named_parameters() if p.ndim > 1}
    attention = sum(size for name, size in inside.items() if "attn" in name)
    mlp = sum(inside.values()) - attention
    d, d_kv = model.config.hidden_size, model.n_kv_heads * model.d_head
    n, width, layers = len(task), task.width, model.n_layers
    start, units = ask.start, ask.units
    begins = [start] if ask.positions == "all" else list(range(start, width))
    dense, looks = n * (2 * width - start) * layers * (attention + mlp), 0.0
    for begin in begins:
        tokens = width - begin
        pairs = 2 * d * (begin + tokens / 2)  # a token's queries with earlier keys, and values
        last = tokens * 2 * d * d_kv + (attention - 2 * d * d_kv) + mlp
        for at in range(layers):
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
    rows = min(n * units, PASS // (width - start))
    heads = (rows * model.n_heads, width - start, model.d_head, width)
    return dense / dense_rate(rows * (width - start), d, max(inside.values()) // d) + (
        looks / looking_rate(*heads)
    )


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
            ask = Ask(model, task, "z", "all", "")
            ask.ours()
            seconds.append(min(spent(ask.ours)[0] for _ in range(2)))
        found[what] = round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 2)
    return found


if __name__ == "__main__":
    main()
