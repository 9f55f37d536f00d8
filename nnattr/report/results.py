"""A report: saved results as one page, from the question to the command that answers it again."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from itertools import combinations
from typing import Any

import plotly.graph_objects as go
import yaml
from markupsafe import Markup

import nnattr
from nnattr.calls.registry import METHODS
from nnattr.config import RunConfig
from nnattr.errors import NnattrError, ResultError
from nnattr.methods.attention.attention_patterns import attention_patterns
from nnattr.model.model import Model
from nnattr.plots import words
from nnattr.plots.look import limit_of
from nnattr.report import html, sections
from nnattr.report.again import again, backend_of
from nnattr.results import Patterns, Scores, cell_label

TOP = 10
HEADS_SHOWN = 4  # heads whose attention is shown
PATTERN_HEIGHT = 440  # pixels
CAPTION = (
    "Mean over the examples; blue moves the metric up, red down. Point at a cell for its value."
)


@dataclass(frozen=True)
class Entry:
    """One result of a report.

    Attributes:
        scores: the result.
        name: what the page calls it: its file's name.
        config: the file that makes it again, if one is known; else it is found from the scores.
    """

    scores: Scores
    name: str
    config: RunConfig | None = None

    @property
    def title(self) -> str:
        """The method and what it was applied to."""
        return unescape(words.title(self.scores))

    @property
    def subject(self) -> tuple[str, ...]:
        """What two results must share for their baselines to be the same numbers."""
        p = self.scores.provenance
        return p.model, p.dtype, p.metric, p.task_hash


def report_page(entries: Sequence[Entry], model: Model | None = None) -> str:
    """The results as one self-contained page of HTML.

    Args:
        entries: the results.
        model: where it is given, the attention of its strongest heads is measured and shown.

    Raises:
        ResultError: there is no result, one has more dimensions than a figure can show, or none is
            about the heads of ``model``.
        ArchError: the model's attention gives no pattern.
    """
    if not entries:
        raise ResultError("A report needs at least one result, and none was given.")
    attention = [] if model is None else [_attention(_of_heads(entries, model), model)]
    limits = _limits(entries)
    blocks = [
        *(_question(group) for group in _grouped(entries)),
        *(_answer(entry, f"scores{i}", limits[i]) for i, entry in enumerate(entries)),
        *(_comparison(*pair, f"agreement{i}") for i, pair in enumerate(_comparable(entries))),
        *attention,
        html.section("How this was made", *(_origin(entry) for entry in entries)),
    ]
    return html.document(_title(entries), _lead(entries), blocks)


def _title(entries: Sequence[Entry]) -> str:
    models, metrics = (
        sorted({getattr(entry.scores.provenance, key) for entry in entries})
        for key in ("model", "metric")
    )
    if len(models) == len(metrics) == 1:
        return f"Which parts of {models[0]} change {metrics[0].removesuffix('()')}?"
    return f"Attribution in {', '.join(models)}"


def _lead(entries: Sequence[Entry]) -> Markup:
    count = "One result" if len(entries) == 1 else f"{len(entries)} results"
    named = "; ".join(dict.fromkeys(entry.title for entry in entries))
    best = entries[0].scores.top(1)
    facts = {"examples": str(entries[0].scores.baselines.sizes["example"])}
    if best:
        facts[f"is the strongest cell ({entries[0].title.lower()})"] = best[0].label
        facts[f"is its {unescape(words.unit(entries[0].scores))}"] = f"{best[0].value:+.3f}"
    return html.paragraph(f"{count}: {named}. Point at a figure for values.", "lead") + html.facts(
        facts
    )


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The results by what they were measured on."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.subject, []).append(entry)
    return list(groups.values())


def _question(group: Sequence[Entry]) -> Markup:
    """The prompts of a task and what the model makes of them."""
    scores = group[0].scores
    p = scores.provenance
    n = scores.baselines.sizes["example"]
    blocks = [html.paragraph(f"{p.task}: {n} example{'s' * (n != 1)} on {p.model}.")]
    if p.examples is None:
        blocks.append(
            html.paragraph("The file is of an older nnattr and does not hold the prompts.")
        )
    else:
        blocks.append(sections.prompts(scores.task))
    return html.section("The question", *blocks, sections.baselines(scores))


def _answer(entry: Entry, name: str, limit: float | None) -> Markup:
    """One result: its figure and its strongest cells."""
    scores = entry.scores
    picture, table = (
        sections.heat(scores, name, CAPTION, limit=limit),
        sections.strongest(scores, TOP),
    )
    narrow = sections.is_narrow(scores)
    said = unescape(words.subtitle(scores))
    return html.section(
        entry.title,
        html.paragraph(f"{said[:1].upper()}{said[1:]} · {entry.name}", "soft"),
        html.paragraph(f"{_scale(scores)} {_reading(scores)}".strip()),
        *([html.side_by_side(picture, table)] if narrow else [picture, table]),
    )


def _reading(scores: Scores) -> str:
    """What to keep in mind when reading the method's numbers."""
    method = METHODS.get(scores.provenance.method)
    return "" if method is None else method.reading


def _limits(entries: Sequence[Entry]) -> list[float | None]:
    """For each result where its colours end: the same for those that can be compared by eye."""
    limits: list[float | None] = [None] * len(entries)
    for one, other in _comparable(entries):
        both = [entry.scores.mean().values.to_numpy() for entry in (one, other)]
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


def _comparable(entries: Sequence[Entry]) -> Iterable[tuple[Entry, Entry]]:
    """Pairs of results that measure the same cells of the same thing in the same unit.

    The exact one comes first, whichever order they were given in.
    """
    exact_first = sorted(entries, key=lambda p: p.scores.provenance.method != "activation_patching")
    for one, other in combinations(exact_first, 2):
        if one.subject != other.subject or not _same_cells(one.scores, other.scores):
            continue
        if words.unit(one.scores) == words.unit(other.scores) and one.scores.mean().raw.size > 1:
            yield one, other


def _same_cells(one: Scores, other: Scores) -> bool:
    keys = ("site", "positions", "direction")
    asked = [[scores.provenance.arguments.get(key) for key in keys] for scores in (one, other)]
    return asked[0] == asked[1] and all(
        one.raw.sizes.get(dim) == other.raw.sizes.get(dim)
        for dim in {*one.cell_dims, *other.cell_dims}
    )


def _comparison(one: Entry, other: Entry, name: str) -> Markup:
    said, picture = sections.agreed(one.scores, other.scores, name)
    seconds = " and ".join(
        f"{entry.title} took {entry.scores.provenance.seconds:.2f} s" for entry in (one, other)
    )
    return html.section(
        "Do they agree?", html.paragraph(f"{one.name} and {other.name}: {said} {seconds}."), picture
    )


def _of_heads(entries: Sequence[Entry], model: Model) -> Entry:
    """The first result that is about the heads of this model."""
    for entry in entries:
        scores = entry.scores
        theirs = scores.provenance.model == model.name and scores.provenance.examples is not None
        if theirs and {"layer", "head"} <= set(scores.cell_dims):
            return entry
    raise ResultError(
        f"None of the results is about the heads of {model.name} and holds its task; they are of "
        f"{', '.join(sorted({entry.scores.provenance.model for entry in entries}))}."
    )


def _attention(entry: Entry, model: Model) -> Markup:
    """Where the strongest heads of a result look, on the first example."""
    ranked = entry.scores.top(entry.scores.mean().raw.size)
    at = [entry.scores.cell_dims.index(dim) for dim in ("layer", "head")]
    heads = list(dict.fromkeys(tuple(cell.index[i] for i in at) for cell in ranked))[:HEADS_SHOWN]
    patterns = attention_patterns(model, entry.scores.task[:1], heads)
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


def _origin(entry: Entry) -> Markup:
    """Where a result comes from, and the file that makes it again."""
    blocks = [html.heading(entry.name), sections.origin(entry.scores)]
    try:
        config = entry.config or again(entry.scores, entry.name)
    except NnattrError as error:
        blocks += [
            html.paragraph(f"To make it again, use Python: {error}"),
            html.code(_python(entry)),
        ]
    else:
        file = f"{entry.name.removesuffix('.safetensors')}.yaml"
        blocks += [
            html.paragraph(
                f"To make it again, save this as {file} and say: nnattr run {file}", "next"
            ),
            html.code(_text(config)),
        ]
    return Markup("\n").join(blocks)


def _text(config: RunConfig) -> str:
    """The file, with everything that was said and nothing that was left empty."""
    said = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    said = {key: value for key, value in said.items() if value != {}}
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True).rstrip()


def _python(entry: Entry) -> str:
    """The call that makes the scores again, from the task that they hold."""
    p = entry.scores.provenance
    method = getattr(nnattr, p.method, None)
    known = inspect.signature(method).parameters if callable(method) else {}
    given = {"dtype": p.dtype, "backend": backend_of(p)} | (
        {"revision": p.revision} if p.revision else {}
    )
    asked = {key: value for key, value in p.arguments.items() if key in known}
    ours = p.metric.endswith(")")
    lines = [
        "import nnattr",
        "",
        f"before = nnattr.Scores.load({entry.name!r})",
        f"model = nnattr.load({p.model!r}{_keywords(given)})",
        f"metric = nnattr.{p.metric}" if ours else f"metric = {p.metric}  # a function of your own",
        f"scores = nnattr.{p.method}(model, before.task, metric{_keywords(asked)})",
    ]
    return "\n".join(lines)


def _keywords(given: Mapping[str, Any]) -> str:
    return "".join(f", {key}={value!r}" for key, value in given.items())
