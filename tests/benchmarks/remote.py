"""What attribution patching costs on a server: the notebook's way and ours, side by side.

::

    python -m tests.benchmarks.remote [--json PATH] [--repeats 3] [--vocabulary 128256]

A real NDIF server on this machine (float32) holds a random model of Llama-3.1-8B's shape in layers
and heads but thin: 32 layers, 32 heads, 8 key/value heads, d_head 16. The question is that of
nnsight's attribution patching notebook: 8 prompts, every head, at the last position.

================  ==============================================================================
the notebook's    three jobs: the logits of the clean run, those of the corrupted run, and z of
                  both runs, its gradients and the logits; everything comes down, the scores are
                  made here
nnattr            ``attribution_patching(model, task, LogitDiff(), positions="last")``
================  ==============================================================================

Both give the same scores, which is checked; then both are timed on a model that is already
deployed, in turns, and medians are reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import nnsight
import torch
from nnsight.intervention.backends.remote import RemoteBackend
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import nnattr
from nnattr import LogitDiff, Model, Task
from nnattr.backend.ndif import model_key
from tests.methods.common import even_ioi
from tests.ndif.server import serve

LAYERS, HEADS, KV_HEADS, D_HEAD, EXAMPLES = 32, 32, 8, 16, 8
#: Our bytes are at most this share of the notebook's.
SHARE = 1 / 500


class Run(NamedTuple):
    """What one run cost, and its scores [layer, head]."""

    jobs: int
    up: int
    down: int
    seconds: float
    scores: Tensor


class Counting(RemoteBackend):
    """nnsight's own client, with its bytes counted."""

    up = 0
    down = 0

    def _post(self, request: Any, blob: bytes) -> Any:
        self.up += len(blob)
        return super()._post(request, blob)

    def finalize(self, content: bytes) -> Any:
        self.down += len(content)
        return super().finalize(content)


def main() -> None:
    """Make the model, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    options = parser.parse_args()
    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    with tempfile.TemporaryDirectory() as folder, serve() as server:
        thin_llama(Path(folder), options.vocabulary)
        model = nnattr.load(folder, backend=server.url)
        task = even_ioi(model, EXAMPLES)
        contenders = {"the notebook's way": notebook, "nnattr": ours}
        first = {name: run(model, task) for name, run in contenders.items()}
        again = [
            {name: run(model, task) for name, run in contenders.items()}
            for _ in range(options.repeats)
        ]
    check(*(first[name] for name in contenders))
    rows = {}
    for name in contenders:
        seconds = statistics.median(turn[name].seconds for turn in again)
        rows[name] = again[-1][name]._replace(seconds=seconds)
    print(table(rows, task, options.vocabulary))
    if options.json:
        numbers = {
            name: {key: value for key, value in row._asdict().items() if key != "scores"}
            for name, row in rows.items()
        }
        options.json.write_text(json.dumps({"runs": numbers, "versions": versions()}, indent=1))


def thin_llama(folder: Path, vocabulary: int) -> None:
    """Write a random model of Llama-3.1-8B's layers and heads, with the teaching tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HEADS * D_HEAD,
        intermediate_size=4 * D_HEAD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    nnattr.load("teaching-llama", device="cpu").tokenizer.save_pretrained(folder)


def ours(model: Model, task: Task) -> Run:
    """One call."""
    began = time.perf_counter()
    scores = nnattr.attribution_patching(model, task, LogitDiff(), positions="last")
    seconds = time.perf_counter() - began
    cost, values = scores.provenance, torch.tensor(scores.mean().values.to_numpy())
    return Run(cost.jobs, cost.bytes_sent, cost.bytes_received, seconds, values)


def notebook(model: Model, task: Task) -> Run:
    """Three jobs, after nnsight's tutorial, in the words of nnsight 0.8."""
    nn, began = model.nn, time.perf_counter()
    clean, corrupted = task.clean_tokens.ids, task.corrupted_tokens.ids
    right, wrong = (
        torch.tensor([ids[0] for ids in side]) for side in (task.answer_ids, task.wrong_answer_ids)
    )
    paths = [path for path, *_ in model.places("z")]
    clients = [Counting(model_key(nn), host=model.backend.host) for _ in range(3)]  # type: ignore[attr-defined]
    with nn.trace(input_ids=clean, backend=clients[0]):
        clean_logits = nnsight.save(nn.lm_head.output)
    with nn.trace(input_ids=corrupted, backend=clients[1]):
        corrupted_logits = nnsight.save(nn.lm_head.output)
    low = logit_diff(corrupted_logits, right, wrong).item()
    high = logit_diff(clean_logits, right, wrong).item()
    n, both = len(clean), torch.cat([clean, corrupted])
    with nn.trace(input_ids=both, backend=clients[2]):
        nn.model.embed_tokens.output.requires_grad_(True)
        z = [nn.get(path).input for path in paths]
        logits = nn.lm_head.output[n:]
        value = (logit_diff(logits, right, wrong) - low) / (high - low)
        slopes = torch.autograd.grad(value, z)
        clean_z = nnsight.save([one[:n].detach().clone() for one in z])
        corrupted_z = nnsight.save([one[n:].detach().clone() for one in z])
        gradients = nnsight.save([one[n:].clone() for one in slopes])
        kept_logits = nnsight.save(logits.detach().clone())
    assert kept_logits.shape == corrupted_logits.shape
    scores = [
        (g[:, -1] * (a[:, -1] - b[:, -1])).unflatten(-1, (HEADS, D_HEAD)).sum((0, 2))
        for g, a, b in zip(gradients, clean_z, corrupted_z, strict=True)
    ]
    up, down = sum(client.up for client in clients), sum(client.down for client in clients)
    return Run(3, up, down, time.perf_counter() - began, torch.stack(scores))


def logit_diff(logits: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """The notebook's metric: the mean logit difference at the last position."""
    last = logits[:, -1]
    correct, incorrect = (last.gather(1, ids[:, None]) for ids in (right, wrong))
    return (correct - incorrect).mean()


def check(theirs: Run, mine: Run) -> None:
    """The scores are equal, there is something to compare, and ours are few bytes."""
    size = theirs.scores.abs().max().item()
    assert size > 1e-6, "no effect anywhere"
    torch.testing.assert_close(
        mine.scores.double(), theirs.scores.double(), rtol=0, atol=1e-4 * size
    )
    assert mine.jobs == 1
    assert mine.up + mine.down <= SHARE * (theirs.up + theirs.down)


def table(rows: dict[str, Run], task: Task, vocabulary: int) -> str:
    """The result as Markdown."""
    lines = [
        f"{EXAMPLES} prompts of {task.width} tokens, {LAYERS} layers x {HEADS} heads, vocabulary "
        f"{vocabulary}, float32; medians. {versions()}",
        "",
        "| | jobs | bytes up | bytes down | seconds |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, run in rows.items():
        lines.append(f"| {name} | {run.jobs} | {run.up:,} | {run.down:,} | {run.seconds:.2f} |")
    theirs, mine = rows.values()
    ratio = (theirs.up + theirs.down) / (mine.up + mine.down)
    lines.append(
        f"| ratio | {theirs.jobs} | {theirs.up / mine.up:.1f} | {theirs.down / mine.down:,.0f} | "
        f"{theirs.seconds / mine.seconds:.1f} |"
    )
    return "\n".join([*lines, "", f"All bytes: {ratio:,.0f} times fewer. The scores are equal."])


def versions() -> str:
    """What was measured with."""
    names = ("nnattr", "nnsight", "torch", "transformers")
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)]
    )


if __name__ == "__main__":
    main()
