"""What exact edges cost, beside their floor and TransformerLens' direct path patching.

::

    python -m tests.benchmarks.edges [--json PATH] [--repeats 3] [--threads 1] [--quick]

GPT-2 small's shape and a Llama with grouped queries, random weights, float32, pairs that differ at
one token. Times are processor seconds, so that other work on the machine does not count as far as
it leaves caches alone, and medians.

===============  ===============================================================================
ours             the job of `path_patching`, both plain runs included
both runs        two passes of the raw module, which every method needs
floor            the multiply-adds that exact edges need at all (`adds`), at the rate at which this
                 machine multiplies matrices of those sizes beside each of our runs
TransformerLens  ``get_act_patch_direct_path`` from one head of the last layer but one into the
                 last layer's; a cell of it is a full pass, whichever it is, so that its seconds
                 are those of the cells of this sample, multiplied
===============  ===============================================================================

With ``--quick`` heads' edges are those into three layers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import nnattr
from nnattr import KL, LogitDiff, Model, Task
from nnattr.engine import edges_job
from nnattr.graph import Choice, Part, chosen
from nnattr.jobs.edge_study import EdgeStudy
from nnattr.model.graph import graph_of
from nnattr.runs.portions import CPU_TOKENS
from tests.benchmarks.engine import (
    dense_rate,
    gpt2,
    inside,
    llama,
    looking_rate,
    pairs,
    saved,
    spent,
)
from tests.benchmarks.foundation import quiet
from tests.tiny import tiny_tokenizer

#: (tokens, first differing token)
LENGTHS = ((16, 10), (128, 120))
#: The layers whose heads' edges stand for all where there is little time.
FEW = (3, 7, 11)
HEADER = """\
| model | edges | metric | tokens (first that differs) | pairs | how many | ours | both runs \
| floor | TransformerLens | peak MB |
|---|---|---|---|---|---|---|---|---|---|---|"""


class Ask:
    """Edges that are asked of a model about pairs.

    Attributes:
        model, task, metric: as a method takes them.
        choice: which edges.
        start: the first token that differs.
    """

    def __init__(self, model: Model, task: Task, metric: Any, choice: Choice) -> None:
        self.model, self.task, self.metric, self.choice = model, task, metric, choice
        differing = (task.clean_tokens.ids != task.corrupted_tokens.ids).any(0)
        self.start = int(differing.int().argmax())
        self.peak = 0

    def ours(self) -> Tensor:
        """The changes [example, receiver, sender, spot]."""
        study = EdgeStudy(
            edges_job, "path_patching", True, self.model, self.task, self.metric, "z", "all",
            "denoising", False, choice=self.choice, arguments={}, per_example=True,
        )  # fmt: skip
        values = self.model.run(edges_job, study.payload(), label="edges").values
        if values["engine"] != "suffix":
            raise SystemExit(f"Full passes: {values['fell_back']}.")
        self.peak = values["peak"]
        return values["change"]

    @torch.no_grad()
    def both_runs(self) -> Tensor:
        """Two passes of the raw module: the difference of their last logits."""
        runs = (self.task.clean_tokens.ids, self.task.corrupted_tokens.ids)
        module = self.model.nn._module
        clean, corrupted = (module(ids, use_cache=False, logits_to_keep=1).logits for ids in runs)
        return clean - corrupted

    def row(self, repeats: int) -> dict[str, Any]:
        """Processor seconds of ours, of both runs and of the floor, one after the other."""
        self.ours(), self.both_runs()
        floors, plain, times = [floor(self)], [], []
        for _ in range(repeats):
            times.append(spent(self.ours)[0])
            plain.append(spent(self.both_runs)[0])
            floors.append(floor(self))
        ratios = [2 * t / sum(ends) for t, ends in zip(times, pairwise(floors), strict=True)]
        return {
            "edges": len(self.choice),
            "ours": statistics.median(times),
            "both runs": statistics.median(plain),
            "over and above": statistics.median(
                t / p - 1 for t, p in zip(times, plain, strict=True)
            ),
            "floor": statistics.median(floors),
            "times the floor": statistics.median(ratios),
            "peak MB": self.peak / 2**20,
        }


def floor(ask: Ask) -> float:
    """The seconds of the multiply-adds without which there is no exact answer, measured now."""
    model, width = ask.model, ask.task.width
    d, tokens = model.config.hidden_size, width - ask.start
    rows = min(len(ask.choice) * len(ask.task), CPU_TOKENS // tokens)
    dense, looks = adds(ask)
    return dense / dense_rate(rows * tokens, d, max(inside(model).values()) // d) + (
        looks / looking_rate(rows * model.n_heads, tokens, model.d_head, width)
    )


def adds(ask: Ask) -> tuple[float, float]:
    """These multiply-adds: with weights, and of queries with keys and patterns with values.

    Of an edge, on the tokens from the first that differs: the receiver's own query, key or value of
    what its sender changes, the looks that this changes and what they add behind the output
    projection; then its layer's MLP, and all layers above; for an MLP itself and these. Of the last
    layer keys and values of these tokens, and the rest for the last token. Besides one plain run
    whole and the other from where they differ. No unembedding, no norms, no nonlinearities.
    """
    model, width, layers = ask.model, ask.task.width, ask.model.n_layers
    sizes = inside(model)
    attention = sum(size for name, size in sizes.items() if "attn" in name)
    mlp = sum(sizes.values()) - attention
    d, d_kv, d_head = model.config.hidden_size, model.n_kv_heads * model.d_head, model.d_head
    tokens = width - ask.start
    seen = ask.start + tokens / 2
    last = tokens * 2 * d * d_kv + (attention - 2 * d * d_kv) + mlp
    dense, looks = (2 * width - ask.start) * layers * (attention + mlp), 0.0
    for receiver, count in zip(
        ask.choice.receivers, ask.choice.wanted.sum(0).tolist(), strict=True
    ):
        if receiver.layer is None:
            continue
        between = layers - receiver.layer - 2
        above = max(0, between) * tokens * (attention + mlp) + last * (between >= 0)
        looked = max(0, between) * tokens * 2 * d * seen + 2 * d * seen * (between >= 0)
        here = (tokens if between >= 0 else 1) * mlp
        if receiver.port is not None:
            shared = model.n_heads // model.n_kv_heads if receiver.kind == "kv" else 1
            queries = tokens if between >= 0 else 1
            here += (queries if receiver.port == "q" else tokens) * d * d_head
            here += queries * shared * d_head * d
            products = 1 if receiver.port == "v" else 2
            looked += queries * shared * products * d_head * seen
        dense += count * (here + above)
        looks += count * looked
    return len(ask.task) * dense, len(ask.task) * looks


def direct_paths(ask: Ask, folder: str, repeats: int) -> float:
    """Seconds of a cell of TransformerLens' direct path patching, after a comparison with ours."""
    from transformer_lens import patching as peer
    from transformer_lens.model_bridge import TransformerBridge

    layer, encode = ask.model.n_layers - 2, ask.model.tokenizer.encode
    words = [
        encode(side[0][0], add_special_tokens=False)[0]
        for side in (ask.task.answers, ask.task.wrong_answers)
    ]

    def metric(logits: Tensor) -> Tensor:
        return (logits[:, -1, words[0]] - logits[:, -1, words[1]]).mean()

    tokens = ask.task.clean_tokens.ids, ask.task.corrupted_tokens.ids
    with quiet(), torch.no_grad():
        bridge: Any = TransformerBridge.boot_transformers(folder, device="cpu").eval()
        caches = [bridge.run_with_cache(ids)[1] for ids in tokens]
        logits = bridge(tokens[1])
        before, size = metric(logits), float(logits.abs().max())

        def cells() -> Tensor:
            patch: Any = peer.get_act_patch_direct_path
            return patch(bridge, tokens[1], *caches, metric, layer, 0, "q", verbose=False)

        seconds = [spent(cells)[0] for _ in range(repeats)]
        theirs = cells()[-1] - before
    own = chosen(graph_of(ask.model), Part("head", layer, 0), "q")
    ours = Ask(ask.model, ask.task, ask.metric, own).ours().mean(0)[:, 0, 0]
    # edges of random weights are near the rounding of logits; tests/peers compares trained ones
    if float((ours - theirs).abs().max()) > 1e-5 * size:
        raise SystemExit(f"TransformerLens answers otherwise: {theirs.tolist()}, {ours.tolist()}.")
    return statistics.median(seconds) / len(ours)


def table(repeats: int, short: bool) -> Iterator[dict[str, Any]]:
    """The rows of the table, printed as they come."""
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        model = saved(gpt2(), Path(folder))
        for tokens, differs in LENGTHS:
            task = pairs(model, tokens, differs, 1)
            for metric in (LogitDiff(), KL()):
                yield measured(
                    "GPT-2 small",
                    "all into the logits",
                    model,
                    task,
                    metric,
                    "all",
                    "logits",
                    repeats,
                )
            cell = direct_paths(
                Ask(model, task, LogitDiff(), Choice((), (), torch.zeros(0, 0))), folder, repeats
            )
            name, q = named(model, "q", short)
            yield measured("GPT-2 small", name, model, task, LogitDiff(), "heads", q, repeats, cell)
        name, every = named(model, "all", short)
        task = pairs(model, *LENGTHS[0], 1)
        yield measured("GPT-2 small", name, model, task, LogitDiff(), "all", every, repeats)
    grouped = nnattr.load(llama().eval(), tokenizer=tiny_tokenizer(32_000), backend="local")
    for tokens, differs in LENGTHS:
        task = pairs(grouped, tokens, differs, 1)
        for port in ("q", "k", "v"):
            some = [
                part
                for part in graph_of(grouped).receivers
                if part.port == port and part.layer in FEW
            ]
            name = f"heads into {port}, layers {', '.join(map(str, FEW))}"
            yield measured("Llama", name, grouped, task, LogitDiff(), "heads", some, repeats)


def named(model: Model, receivers: str, short: bool) -> tuple[str, Any]:
    """What a table calls edges, and their receivers."""
    if not short:
        return ("heads into q" if receivers == "q" else "all"), receivers
    some = [part for part in graph_of(model).receivers if part.layer in FEW]
    kept = [part for part in some if receivers in ("all", part.port)]
    name = "heads into q" if receivers == "q" else "all"
    return f"{name}, layers {', '.join(map(str, FEW))}", kept


def measured(
    shape: str,
    name: str,
    model: Model,
    task: Task,
    metric: Any,
    senders: Any,
    receivers: Any,
    repeats: int,
    cell: float | None = None,
) -> dict[str, Any]:
    """One line, printed."""
    ask = Ask(model, task, metric, chosen(graph_of(model), senders, receivers))
    row = {"shape": shape, "name": name, "metric": repr(metric), "tokens": task.width}
    row |= {"differs": ask.start, "pairs": len(task), **ask.row(repeats)}
    row["TransformerLens"] = None if cell is None else cell * row["edges"]
    theirs = row["TransformerLens"]
    into = row["name"].endswith("logits")
    cells = [
        shape,
        name,
        row["metric"],
        f"{task.width} ({ask.start})",
        str(len(task)),
        f"{row['edges']:,}",
        f"{row['ours']:.3g}",
        f"{row['both runs']:.3g} (+{row['over and above']:.0%})"
        if into
        else f"{row['both runs']:.3g}",
        "" if into else f"{row['floor']:.3g} ({row['times the floor']:.2f})",
        "" if theirs is None else f"{theirs:.0f} ({theirs / row['ours']:.0f}x)",
        f"{row['peak MB']:.0f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)
    return row


def exponents() -> dict[str, float]:
    """How our cost grows: the slope of its logarithm against that of each size."""
    found: dict[str, float] = {}
    for what, sizes in {
        "layers": (3, 6, 12),
        "heads": (3, 6, 12),
        "length": (16, 32, 64),
        "pairs": (1, 2, 4),
    }.items():
        seconds = []
        for size in sizes:
            given = {"layers": 4, "heads": 6, "length": 16, "pairs": 1, what: size}
            module = gpt2(given["layers"], given["heads"]).eval().requires_grad_(False)
            model = nnattr.load(module, tokenizer=tiny_tokenizer(50_257), backend="local")
            task = pairs(model, given["length"], given["length"] * 5 // 8, given["pairs"])
            ask = Ask(model, task, LogitDiff(), chosen(graph_of(model), "heads", "q"))
            ask.ours()
            seconds.append(min(spent(ask.ours)[0] for _ in range(2)))
        found[what] = round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 2)
    return found


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="edges into three layers only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"rows": [], "began": time.time()}
    for row in table(options.repeats, options.quick):
        report["rows"].append({**row, "load": os.getloadavg()})
        if options.json:
            options.json.write_text(json.dumps(report, indent=1))
    report["exponents"] = exponents()
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    print(json.dumps(report["exponents"]))


if __name__ == "__main__":
    main()
