"""The main job from end to end: which heads make a model identify the indirect object?

`measure` asks the question twice, exactly and by the first-order estimate; `summary` writes the
answer for a terminal, `demo_page` writes it as a page.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from nnattr import tasks
from nnattr.cli.console import Block, pairs, table
from nnattr.methods.patching.activation_patching import activation_patching
from nnattr.methods.patching.attribution_patching import attribution_patching
from nnattr.metrics import LogitDiff
from nnattr.model.model import Model
from nnattr.report.values import baseline, measured
from nnattr.results import Agreement, Cell, Scores, agreement
from nnattr.tasks import Task

TOP = 8


@dataclass(frozen=True)
class Demo:
    """What the demo measured.

    Attributes:
        model: the model asked.
        task: indirect-object identification, names swapped in the corrupted prompts.
        exact: activation patching of every head.
        estimate: attribution patching of every head.
        by_position: activation patching of the residual stream before each layer, one position at
            a time, on pairs that share one layout.
        seed: what the task was drawn with.
    """

    model: Model
    task: Task
    exact: Scores
    estimate: Scores
    by_position: Scores
    seed: int

    @property
    def agreement(self) -> Agreement:
        """How well the estimate stands for the exact scores."""
        return agreement(self.exact, self.estimate)

    @property
    def warning(self) -> str:
        """What to think of the scores if the model does not do the task; empty if it does."""
        clean, corrupted = (baseline(self.exact, run).preferred for run in ("clean", "corrupted"))
        unable = (
            f"{self.model.name} does not do this task: it does not prefer the right name more "
            "often than the other. The scores below say how its outputs come about, not how the "
            "task is solved."
        )
        caution = self.exact.provenance.caution
        said = ["" if clean > 0.5 > corrupted else unable, caution and f"Caution: {caution}"]
        return " ".join(filter(None, said))

    @property
    def ranked(self) -> list[tuple[Cell, Cell]]:
        """The strongest heads by the exact method and by the estimate, side by side."""
        return list(zip(self.exact.top(TOP), self.estimate.top(TOP), strict=True))


def measure(model: Model, n: int, seed: int) -> Demo:
    """Run the whole demo.

    Args:
        model: any model whose tokenizer has enough names as single tokens.
        n: number of prompt pairs.
        seed: which names, places and templates.

    Raises:
        NnattrError: the task does not fit the model, or a method failed.
    """
    task, metric = tasks.ioi(model.tokenizer, n=n, seed=seed), LogitDiff()
    for method in (attribution_patching, activation_patching):  # first calls set nnsight up
        method(model, task[:1], metric, normalized=False)
    estimate = attribution_patching(model, task, metric)
    exact = activation_patching(model, task, metric)
    aligned = same_layout(model.tokenizer, n, seed)
    by_position = activation_patching(model, aligned, metric, site="resid_pre", positions="each")
    return Demo(model, task, exact, estimate, by_position, seed)


def same_layout(tokenizer: Any, n: int, seed: int) -> Task:
    """Up to ``n`` pairs of one template, so that a position means the same in each."""
    task = tasks.ioi(tokenizer, n=8 * n, seed=seed, order="ABBA")
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, tokens in enumerate(task.clean_tokens.strings):
        groups[tokens[0], len(tokens), *(rows[i] for rows in task.spans.values())].append(i)
    return task[max(groups.values(), key=len)[:n]]


def summary(demo: Demo) -> list[Block]:
    """The demo's answer for a terminal."""
    model, task = demo.model, demo.task
    return [
        f"{model.name}: {model.architecture}, {model.n_layers} layers x {model.n_heads} heads, "
        f"{model.dtype}, {model.backend.name}",
        "",
        f"Indirect-object identification, {len(task)} pairs of prompts, such as",
        pairs(
            (
                ("clean", f"{task.clean[0]} →{task.answers[0][0]}"),
                ("corrupted", f"{task.corrupted[0]} →{task.wrong_answers[0][0]}"),
            )
        ),
        "",
        _baselines(demo.exact),
        *(("", demo.warning) if demo.warning else ()),
        "",
        "One head at a time from the clean run into the corrupted one: share of the logit "
        "difference that it brings back (0 none, 1 all; ± standard error)",
        "",
        _heads(demo),
        "",
        str(demo.agreement),
        _timing(demo),
    ]


def _baselines(scores: Scores) -> Block:
    """Whether the model does the task."""
    rows = []
    for run in ("clean", "corrupted"):
        one = baseline(scores, run)
        rows.append((f"{run} prompts", f"{one.preferred:.0%}", measured(one.mean, one.stderr, 2)))
    return table(("", "right name preferred", "logit difference"), rows)


def _heads(demo: Demo) -> Block:
    """The strongest heads by both methods, side by side."""
    rows = [
        (str(rank), *(f"{c.label:<8}{measured(c.value, c.stderr, 4)}" for c in cells))
        for rank, cells in enumerate(demo.ranked, 1)
    ]
    header = ("", "activation patching (exact)", "attribution patching (estimate)")
    return table(header, rows, texts=len(header))


def _timing(demo: Demo) -> str:
    exact, estimate = (scores.provenance.seconds for scores in (demo.exact, demo.estimate))
    return f"Activation patching took {exact:.2f} s, attribution patching {estimate:.2f} s."
