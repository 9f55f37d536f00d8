"""The pieces that every page of results is made of: prompts, baselines, figures, tables, origin."""

from __future__ import annotations

from collections.abc import Sequence
from html import unescape
from itertools import islice

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from nnattr import plots
from nnattr.arguments import shown
from nnattr.plots import words
from nnattr.report import html
from nnattr.report.values import NBSP, baseline, measured, runs
from nnattr.results import (
    AttentionParts,
    Cell,
    Composition,
    HeadScores,
    Result,
    Scores,
    agreement,
)
from nnattr.results.cells import counted
from nnattr.results.statistics import bootstrap_bounds
from nnattr.tasks import Task

SHOWN = 4  # prompts that stand open on the page
FOLDED = 60  # prompts that can be opened
WORDS = 4  # of a group of answers
RESAMPLES = 2000
NARROW = 560  # pixels; the same as in the page's style
#: Metrics that are positive where the model prefers the answer.
DIFFERENCES = ("LogitDiff", "GroupLogProbDiff", "GroupProbDiff")


def prompts(task: Task) -> Markup:
    """The first prompts with their answers, the tokens that differ marked, and more to open."""
    rows = [_pair(task, i) for i in range(min(len(task), SHOWN + FOLDED))]
    shown, hidden = rows[:SHOWN], rows[SHOWN:]
    if not hidden:
        return html.pairs(shown)
    unseen = len(task) - len(rows)
    label = f"{len(hidden)} more" + (f" (and {unseen} that are not on this page)" if unseen else "")
    return html.pairs(shown) + html.folded(label, html.pairs(hidden))


def _pair(task: Task, i: int) -> list[tuple[str, Markup, str]]:
    """One example: for each run its name, the prompt, marked, and the answer it calls for."""
    clean = task.clean_tokens.strings[i]
    right, wrong = (_words(side[i]) if side else "" for side in (task.answers, task.wrong_answers))
    if task.twin_tokens is None:
        return [("prompt", html.marked(clean, clean), right)]
    other = task.twin_tokens.strings[i]
    return [
        ("clean", html.marked(clean, other), right),
        ("corrupted", html.marked(other, clean), wrong),
    ]


def _words(group: Sequence[str]) -> str:
    """What may follow a prompt: `` → Yes, Sure, ...``."""
    names = ", ".join(word.strip() or repr(word) for word in islice(group, WORDS))
    return f"→ {names}" + (", …" if len(group) > WORDS else "") if group else ""


def baselines(scores: Scores) -> Markup:
    """The metric of both runs without any patch, as a table."""
    name = scores.provenance.metric.removesuffix("()")
    found = {run: baseline(scores, run) for run in runs(scores)}
    differs = name in DIFFERENCES
    known = any(np.isfinite(one.stderr) for one in found.values())
    caption = "Without any patch" + (" (± standard error)" if known else "")
    header = ("run", *(("answer preferred",) if differs else ()), name)
    rows = [
        (run, *((f"{one.preferred:.0%}",) if differs else ()), measured(one.mean, one.stderr))
        for run, one in found.items()
    ]
    return html.table(caption, header, rows)


def caution(result: Result) -> list[Markup]:
    """What speaks against the numbers of a result, if anything does."""
    text = result.provenance.caution
    return [html.paragraph(f"Caution: {text}", "caution")] if text else []


def heat(
    scores: Scores, name: str, caption: str, heading: str = "", limit: float | None = None
) -> Markup:
    """The scores' own figure without its heading; ``name`` is its id on the page."""
    picture = scores.plot(title="", limit=limit)
    kind = "narrow" if is_narrow(picture) else ""
    return html.figure(picture, name, caption, heading, kind)


def is_narrow(picture: go.Figure) -> bool:
    """Whether a figure would only be stretched by the whole width of a page."""
    return picture.to_dict()["layout"]["width"] <= NARROW


def pictures(result: Result, name: str) -> Markup:
    """The figure of any result; kinds of heads have one each, beside each other.

    Args:
        result: what `nnattr.load_result` opens.
        name: the figure's id on the page.
    """
    if isinstance(result, HeadScores) and len(result.kinds) > 1:
        each = [result.plot(kind, title="") for kind in result.kinds]
        return html.side_by_side(
            *(html.figure(one, f"{name}-{i}", "", kind="narrow") for i, one in enumerate(each))
        )
    picture = result.plot(title="")
    kind = "narrow" if is_narrow(picture) else "wide"
    return html.figure(picture, name, "Point at the figure for values.", kind=kind)


def rankings(result: Result, k: int) -> list[Markup]:
    """The strongest entries of a result that ranks them, as a table."""
    if isinstance(result, HeadScores):
        best = [[_cell(cell) for cell in result.top(kind, k)] for kind in result.kinds]
        return [
            html.table("The strongest heads of each kind", result.kinds, zip(*best, strict=True))
        ]
    if isinstance(result, AttentionParts | Composition):
        rows = [(cell.label, measured(cell.value, cell.stderr)) for cell in result.top(k)]
        return [html.table("The strongest pairs", ("pair", "value"), rows)]
    return []


def _cell(cell: Cell) -> str:
    return f"{cell.label} {measured(cell.value, cell.stderr)}"


def strongest(scores: Scores, k: int) -> Markup:
    """The ``k`` strongest cells with 95 % intervals of their means, as a table."""
    cells = scores.top(k)
    label = (
        f"The {len(cells)} strongest of {counted(scores.n_cells, scores.NOUN)}, by "
        f"{unescape(words.unit(scores))}"
    )
    bounds = _intervals(scores, cells)
    if bounds is None:
        return html.table(
            label, (scores.NOUN, "value"), [(c.label, f"{c.value:+.3f}") for c in cells]
        )
    n = scores.raw.sizes["example"]
    caption = (
        f"{label}. The intervals (95 %, bootstrap over the {n} examples) speak of these examples, "
        "not of other tasks" + (", and are too narrow for so few." if n < 20 else ".")
    )
    rows = [
        (
            cell.label,
            f"{cell.value:+.3f}",
            f"{low:+.3f}{NBSP}to{NBSP}{high:+.3f}",
            f"{cell.stderr:.3f}",
        )
        for cell, low, high in zip(cells, *bounds, strict=True)
    ]
    return html.table(caption, (scores.NOUN, "value", "95 % interval", "standard error"), rows)


def _intervals(scores: Scores, cells: Sequence[Cell]) -> np.ndarray | None:
    """Both bounds [2, cell] of the cells' means; None where the examples are not known apart."""
    if "example" not in scores.raw.dims or scores.raw.sizes["example"] < 2 or not cells:
        return None
    labels = [dict(zip(scores.cell_dims, cell.index, strict=True)) for cell in cells]
    chosen = [scores.sel(**label).values.to_numpy().ravel() for label in labels]
    return bootstrap_bounds(np.stack(chosen, axis=1), 0.95, RESAMPLES, seed=0)


def agreed(exact: Scores, estimate: Scores, name: str) -> tuple[str, Markup]:
    """How two results on the same cells agree: a sentence and a scatter."""
    picture = plots.agreement_scatter(exact, estimate, title="")
    caption = "One point per cell; on the dotted line both methods say the same."
    found = agreement(exact, estimate)
    said = [f"{found}.", *([f"{found.provenance.asked}."] if found.provenance.asked else [])]
    return " ".join(said), html.figure(picture, name, caption, kind="narrow")


def origin(result: Result) -> Markup:
    """Where a result comes from."""
    p = result.provenance
    remote = f"{p.jobs} jobs, {p.bytes_sent} bytes sent, {p.bytes_received} received"
    memory = f"at most {p.peak_memory / 1e9:.2f} GB in use, {p.rows_per_forward} rows in a pass"
    entries = {
        "Model": p.subject + (f" at {p.revision}" if p.revision else ""),
        "Architecture": f"{p.architecture}, {p.weights}",
        "Backend": p.backend,
        "Task": f"{p.task}, hash {p.task_hash}" if p.task else "",
        "Metric": p.metric,
        "Method": f"{p.method}({', '.join(f'{k}={shown(v)}' for k, v in p.arguments.items())})",
        "Full passes": p.fell_back,
        "Made": f"{p.created}, in {p.seconds:.2f} s" if p.created else "",
        "Memory": memory if p.peak_memory else "",
        "Server": remote if p.jobs else "",
        "Versions": ", ".join(f"{name} {version}" for name, version in p.versions.items()),
    }
    return html.definitions({name: value for name, value in entries.items() if value})
