"""What a report says of `Scores` beyond any result: baselines, intervals, agreement, heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import unescape
from itertools import combinations
from typing import Any, TypeGuard

import plotly.graph_objects as go
from markupsafe import Markup

from nnattr.errors import ResultError
from nnattr.methods.attention.attention_patterns import attention_patterns
from nnattr.model.model import Model
from nnattr.plots import words
from nnattr.plots.edges import view
from nnattr.plots.look import limit_of
from nnattr.report import html, sections
from nnattr.report.entry import TOP, Entry
from nnattr.results import EdgeScores, Patterns, Scores, cell_label

HEADS_SHOWN = 4  # heads whose attention is shown
PATTERN_HEIGHT = 440  # pixels
CAPTION = (
    "Mean over the examples; blue moves the metric up, red down. Point at a cell for its value."
)


def measured(entry: Entry[Any]) -> TypeGuard[Entry[Scores]]:
    """Whether the result is one of scores."""
    return isinstance(entry.result, Scores)


def facts(entry: Entry[Scores]) -> dict[str, str]:
    """The few numbers that matter most, by what they are."""
    scores = entry.result
    found = {"examples": str(scores.baselines.sizes["example"])}
    for best in scores.top(1):
        found[f"is the strongest cell ({entry.title.lower()})"] = best.label
        found[f"is its {unescape(words.unit(scores))}"] = f"{best.value:+.3f}"
    return found


def answer(entry: Entry[Scores], name: str, limit: float | None) -> Markup:
    """One result: its figure, if it has cells to draw, and its strongest cells."""
    scores = entry.result
    found = [sections.strongest(scores, TOP)]
    if scores.cell_dims:
        found.insert(0, sections.heat(scores, name, _caption(scores), limit=limit))
    if _has_direct_effects(scores):
        direct, heading = scores.sel(receiver="logits"), "The direct effects: edges into the logits"
        found.append(sections.heat(direct, f"{name}-logits", _caption(direct), heading))
    beside = scores.cell_dims and sections.is_narrow(scores.plot(title=""))
    said = unescape(words.subtitle(scores))
    return html.section(
        entry.title,
        html.paragraph(f"{said[:1].upper()}{said[1:]} · {entry.name}", "soft"),
        html.paragraph(f"{entry.question} {_scale(scores)} {entry.reading}".strip()),
        *sections.caution(scores),
        *([html.side_by_side(*found)] if beside else found),
    )


def _caption(scores: Scores) -> str:
    """What is seen, and of edges which of them and what stands for no value."""
    notes = view(scores).notes if isinstance(scores, EdgeScores) else []
    return " ".join([CAPTION, *(f"{note[:1].upper()}{note[1:]}." for note in notes)])


def _has_direct_effects(scores: Scores) -> bool:
    """Whether there are edges into the logits among others."""
    receivers = scores.raw["receiver"].to_numpy() if isinstance(scores, EdgeScores) else ()
    return len(receivers) > 1 and "logits" in receivers


def limits(entries: Sequence[Entry[Scores]]) -> list[float | None]:
    """For each result where its colours end: the same for those that can be compared by eye."""
    limits: list[float | None] = [None] * len(entries)
    for one, other in comparable(entries):
        both = [entry.result.mean().values.to_numpy() for entry in (one, other)]
        end = max(limit_of(values, None) for values in both)
        for entry in (one, other):
            at = entries.index(entry)
            limits[at] = max(end, limits[at] or 0.0)
    return limits


def _scale(scores: Scores) -> str:
    if scores.rest is not None or not scores.provenance.arguments.get("normalized"):
        return f"Values are in the unit of {scores.provenance.metric.removesuffix('()')}."
    one = "clean" if scores.provenance.arguments.get("direction") == "denoising" else "corrupted"
    return (
        f"0 changes nothing, 1 moves the metric as far as the {one} run is ({scores.scale:+.3f} in "
        "its own unit)."
    )


def comparable(entries: Sequence[Entry[Scores]]) -> Iterable[tuple[Entry[Scores], Entry[Scores]]]:
    """Pairs of results that measure the same cells of the same thing in the same unit.

    The exact one comes first, whichever order they were given in.
    """
    exact_first = sorted(entries, key=lambda p: p.result.provenance.method != "activation_patching")
    for one, other in combinations(exact_first, 2):
        if one.subject != other.subject or not _same_cells(one.result, other.result):
            continue
        if words.unit(one.result) == words.unit(other.result) and one.result.mean().raw.size > 1:
            yield one, other


def _same_cells(one: Scores, other: Scores) -> bool:
    keys = ("site", "positions", "direction", "between")
    asked = [[scores.provenance.arguments.get(key) for key in keys] for scores in (one, other)]
    return asked[0] == asked[1] and all(
        one.raw.sizes.get(dim) == other.raw.sizes.get(dim)
        for dim in {*one.cell_dims, *other.cell_dims}
    )


def comparison(one: Entry[Scores], other: Entry[Scores], name: str) -> Markup:
    """How two results on the same cells agree, and what each took."""
    said, picture = sections.agreed(one.result, other.result, name)
    seconds = " and ".join(
        f"{entry.title} took {entry.result.provenance.seconds:.2f} s" for entry in (one, other)
    )
    return html.section(
        "Do they agree?", html.paragraph(f"{one.name} and {other.name}: {said} {seconds}."), picture
    )


def of_heads(entries: Sequence[Entry[Scores]], model: Model) -> Entry[Scores]:
    """The first result that is about the heads of this model."""
    for entry in entries:
        scores = entry.result
        theirs = (
            scores.provenance.subject == model.subject and scores.provenance.examples is not None
        )
        if theirs and {"layer", "head"} <= set(scores.cell_dims):
            return entry
    raise ResultError(
        f"None of the results is about the heads of {model.name} and holds its task; they are of "
        f"{', '.join(sorted({entry.result.provenance.model for entry in entries}))}."
    )


def attention(entry: Entry[Scores], model: Model) -> Markup:
    """Where the strongest heads of a result look, on the first example."""
    ranked = entry.result.top(entry.result.mean().raw.size)
    at = [entry.result.cell_dims.index(dim) for dim in ("layer", "head")]
    heads = list(dict.fromkeys(tuple(cell.index[i] for i in at) for cell in ranked))[:HEADS_SHOWN]
    patterns = attention_patterns(model, entry.result.task[:1], heads)
    return html.section(
        "Where the strongest heads look",
        html.paragraph(
            f"The {len(heads)} strongest heads of {entry.name} on the first clean prompt. Rows "
            "look, columns are looked at; what comes later cannot be seen. Attention says where a "
            "head reads, not what it makes of it."
        ),
        html.side_by_side(
            *(
                html.figure(
                    _pattern(patterns, head),
                    f"looks{i}",
                    "",
                    cell_label({"layer": head[0], "head": head[1]}),
                )
                for i, head in enumerate(heads)
            )
        ),
    )


def _pattern(patterns: Patterns, head: tuple[int, int]) -> go.Figure:
    """One head's pattern, low enough for a page; as many numbers across as there is room for."""
    ticks = {"tickmode": "auto", "tickangle": 0, "title": {"text": "Position looked at"}}
    return (
        patterns.plot(heads=[head], title="")
        .update_layout(height=PATTERN_HEIGHT)
        .update_xaxes(ticks)
    )
