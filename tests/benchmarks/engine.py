"""What exact patching costs, beside its floor, full passes, TransformerLens and a hook loop.

::

    python -m tests.benchmarks.engine [--json PATH] [--repeats 3] [--threads 1] [--quick]

Random models of two shapes, float32, pairs that differ at one token. Times are processor seconds,
so that other work on the machine does not count; ours are medians. A contender that runs full
passes pays the same for every layer: it is timed on the cells of one layer, once, and multiplied by
the layers (``x L``). All answers on that layer are compared first.

==============  ================================================================================
ours            `activation_patching` as it is
full            the same with ``engine="full"``, in batches                              (x L)
TransformerLens ``patching.generic_activation_patch`` on its bridge, z all heads only    (x L)
hook loop       one hooked forward per cell, last token unembedded, z all heads only     (x L)
floor           the multiply-adds that exact patching needs at all, at the rate at which this
                machine multiplies matrices of those sizes (`floor`)
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
from importlib.metadata import version
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
from tests.benchmarks.foundation import RIGHT, WRONG, difference, hooked, quiet
from tests.tiny import tiny_tokenizer

#: (tokens, first differing token)
LENGTHS = ((16, 10), (64, 40), (128, 120))
QUESTIONS = (("z", "all"), ("z", "each"), ("resid_pre", "each"))
#: The layer whose cells full passes are timed on.
LAYER = 1


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
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="z at all positions of GPT-2 only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = list(table(options.repeats, options.quick))
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg(),
        "threads": options.threads,
        "versions": {n: version(n) for n in ("nnattr", "nnsight", "torch", "transformer-lens")},
        "rows": rows,
        "exponents": exponents(),
    }
    print(json.dumps({k: v for k, v in report.items() if k != "rows"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def table(repeats: int, short: bool) -> Iterator[dict[str, Any]]:
    """The rows of the table, printed as they come."""
    print(
        "| shape | question | tokens | pairs | ours | floor | full | TransformerLens | hook loop |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make in {"GPT-2 small": gpt2, **({} if short else {"Llama": llama})}.items():
        with tempfile.TemporaryDirectory() as folder:
            model = saved(make(), Path(folder))
            for site, positions in QUESTIONS[: 1 if short else None]:
                for tokens, differs in LENGTHS:
                    for n in (2, 8):
                        if name == "Llama" and (n == 8 or positions == "each"):
                            continue
                        if positions == "each" and n == 8:
                            continue
                        task = pairs(model, tokens, differs, n)
                        ask = Ask(model, task, site, positions, Path(folder))
                        row = ask.row(
                            repeats, peers=name != "Llama" and positions == "all" and n == 2
                        )
                        found = {"shape": name, "site": site, "positions": positions, **row}
                        show({**found, "tokens": tokens, "differs": differs, "pairs": n})
                        yield {**found, "tokens": tokens, "differs": differs, "pairs": n}


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    cells = [
        row["shape"],
        f"{row['site']} {row['positions']}",
        f"{row['tokens']} ({row['differs']})",
    ]
    numbers = [f"{row[key]:.2f}" if key in row else "" for key in ("ours", "floor")]
    ratios = [
        f"{row[key]:.1f} ({row[key] / row['ours']:.1f}x)" if key in row else ""
        for key in ("full", "TransformerLens", "hook loop")
    ]
    print("| " + " | ".join([*cells, str(row["pairs"]), *numbers, *ratios]) + " |", flush=True)


def saved(module: Any, folder: Path) -> Model:
    """The model, written where TransformerLens finds the same weights."""
    with quiet():
        module.eval().save_pretrained(folder)
    tiny_tokenizer(module.config.vocab_size).save_pretrained(folder)
    return nnattr.load(folder, device="cpu", backend="local")


def pairs(model: Model, tokens: int, differs: int, n: int) -> Task:
    """Pairs of prompts that differ at one token."""
    last = model.config.vocab_size - 1
    right, wrong = min(RIGHT, last - 1), min(WRONG, last)
    rows = [[f"w{3000 + 200 * row + i}" for i in range(tokens)] for row in range(n)]
    other = [[*row[:differs], f"w{9000 + i}", *row[differs + 1 :]] for i, row in enumerate(rows)]
    clean, corrupted = ([" ".join(row) for row in side] for side in (rows, other))
    answers = [f" w{right}"] * n, [f" w{wrong}"] * n
    return Task.from_pairs(clean, corrupted, *answers, tokenizer=model.tokenizer)


class Ask:
    """One question and its contenders."""

    def __init__(self, model: Model, task: Task, site: Any, positions: Any, folder: Path) -> None:
        self.model, self.task, self.site, self.positions = model, task, site, positions
        self.folder = folder

    def row(self, repeats: int, peers: bool) -> dict[str, Any]:
        """Processor seconds of everybody, after a comparison."""
        answer = self.ours()
        times = [spent(self.ours)[0] for _ in range(repeats)]
        found: dict[str, Any] = {
            "ours": statistics.median(times),
            "range": (min(times), max(times)),
            "floor": floor(self),
        }
        layers = self.model.n_layers
        others: dict[str, Callable[[], Tensor]] = {"full": self.full}
        if peers:
            others |= {"TransformerLens": self.transformer_lens(), "hook loop": self.hook_loop}
        for name, contender in others.items():
            seconds, theirs = spent(contender)
            gap = float((theirs - answer[:, LAYER].reshape(theirs.shape)).abs().max())
            if gap > 1e-3 * float(answer.abs().max()):
                raise SystemExit(f"{name} answers otherwise, by {gap:.1e}.")
            found[name] = seconds * layers
        return found

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
        """The heads of one layer [example, head], with the bridge already booted."""
        import pandas as pd
        from transformer_lens import patching
        from transformer_lens.model_bridge import TransformerBridge

        with quiet():
            bridge = TransformerBridge.boot_transformers(str(self.folder), device="cpu").eval()
        heads = [(LAYER, head) for head in range(self.model.n_heads)]

        def sweep() -> Tensor:
            with quiet(), torch.no_grad():
                _, cache = bridge.run_with_cache(
                    self.task.clean_tokens.ids, names_filter=lambda name: "attn.hook_z" in name
                )
                found = patching.generic_activation_patch(
                    bridge, self.task.corrupted_tokens.ids, cache, difference, reduce="none",
                    patch_setter=patching.layer_head_vector_patch_setter, activation_name="z",
                    index_df=pd.DataFrame(heads, columns=["layer", "head"]), baseline=True,
                )  # fmt: skip
            baseline: Any = found.baseline
            return (found.values - baseline).T

        return sweep

    def hook_loop(self) -> Tensor:
        """The same by one hooked forward per head."""
        module, clean = self.model.nn._module, {}
        heads, size = self.model.n_heads, self.model.d_head

        def run(ids: Tensor) -> Tensor:
            return difference(module(ids, use_cache=False, logits_to_keep=1).logits)

        def patch(at: int, z: Tensor, head: int) -> Any:
            if at != LAYER:
                return None
            new, columns = z.clone(), slice(head * size, (head + 1) * size)
            new[..., columns] = clean[LAYER][..., columns]
            return new

        found = []
        with torch.no_grad():
            with hooked(module, lambda at, z: clean.update({at: z.clone()})):
                run(self.task.clean_tokens.ids)
            before = run(self.task.corrupted_tokens.ids)
            for head in range(heads):
                with hooked(module, lambda at, z, head=head: patch(at, z, head)):
                    found.append(run(self.task.corrupted_tokens.ids) - before)
        return torch.stack(found, 1)


def spent(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Processor seconds, and the answer."""
    started = time.process_time()
    answer = work()
    return time.process_time() - started, answer


def floor(ask: Ask) -> float:
    """The seconds of the multiply-adds without which there is no exact answer.

    Per patched row: the entry layer's MLP (z) or all of it (resid), all layers above, on the tokens
    from the patch on; of the last layer keys and values of these, and the rest for the last token;
    attention's products with all earlier keys. Besides the base run whole and the source run from
    where they differ. No unembedding, no norms, no nonlinearities.
    """
    model, task = ask.model, ask.task
    layer = model.nn._module.get_submodule(f"{model.spec.layers}.0")
    inside = {name: p.numel() for name, p in layer.named_parameters() if p.ndim > 1}
    attention = sum(size for name, size in inside.items() if "attn" in name)
    mlp = sum(inside.values()) - attention
    d, d_kv = model.config.hidden_size, model.n_kv_heads * model.d_head
    n, width, layers = len(task), task.width, model.n_layers
    start = int((task.clean_tokens.ids != task.corrupted_tokens.ids).any(0).int().argmax())
    units = model.n_heads if ask.site == "z" else 1
    begins = [start] if ask.positions == "all" else list(range(start, width))
    total = n * (2 * width - start) * layers * (attention + mlp)
    for begin in begins:
        tokens = width - begin
        looks = 2 * d * (begin + tokens / 2)
        whole = tokens * (attention + mlp + looks)
        last = tokens * 2 * d * d_kv + (attention - 2 * d * d_kv) + mlp + looks
        for at in range(layers):
            above = max(0, layers - at - 2) * whole + (last if at < layers - 1 else 0)
            if ask.site == "z":
                needed = (tokens if at < layers - 1 else 1) * (mlp + d * model.d_head)
                if at == layers - 1 and ask.positions == "each" and begin < width - 1:
                    needed = 0  # it cannot reach the metric
            else:
                needed = whole if at < layers - 1 else last
            total += n * units * (needed + above)
    return total / rate(n * units * (width - start), d, max(inside.values()) // d)


def rate(rows: int, d: int, wide: int) -> float:
    """Multiply-adds a second of [rows, d] @ [d, wide] and back, the best of a few."""
    rows = min(rows, 512)
    there, back = torch.randn(d, wide), torch.randn(wide, d)
    x = torch.randn(rows, d)
    times = []
    for _ in range(12):
        started = time.process_time()
        _ = (x @ there) @ back
        times.append(time.process_time() - started)
    return 2 * rows * d * wide / min(times)


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
            ask = Ask(model, task, "z", "all", Path())
            ask.ours()
            seconds.append(min(spent(ask.ours)[0] for _ in range(2)))
        found[what] = round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 2)
    return found


if __name__ == "__main__":
    main()
