"""A report: saved results as one page, from the question to what answers it again."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from nnattr.errors import ResultError
from nnattr.model.model import Model
from nnattr.report import entry as any_result
from nnattr.report import html, scores, sections
from nnattr.report.entry import Entry
from nnattr.results import Result, Scores
from nnattr.results.cells import counted

Entries = Sequence[Entry[Result]]


def report_page(entries: Entries, model: Model | None = None) -> str:
    """The results as one self-contained page of HTML.

    Args:
        entries: the results, of any kinds.
        model: where it is given, the attention of the strongest heads of the first scores of heads
            is measured and shown.

    Raises:
        ResultError: there is no result, one has more dimensions than a figure can show, or none is
            about the heads of ``model``.
        ArchError: the model's attention gives no pattern.
    """
    if not entries:
        raise ResultError("A report needs at least one result, and none was given.")
    measured = [entry for entry in entries if scores.measured(entry)]
    heads = [] if model is None else [scores.attention(scores.of_heads(measured, model), model)]
    compared = enumerate(scores.comparable(measured))
    blocks = [
        *(_question(group) for group in _grouped(entries)),
        *_answers(entries),
        *(scores.comparison(*pair, f"agreement{i}") for i, pair in compared),
        *heads,
        html.section("How this was made", *(any_result.origin(entry) for entry in entries)),
    ]
    return html.document(_title(entries), _lead(entries), blocks)


def _answers(entries: Entries) -> list[Markup]:
    """A section for each result, in the order given."""
    measured = [entry for entry in entries if scores.measured(entry)]
    limits = iter(scores.limits(measured))
    return [
        scores.answer(entry, f"result{i}", next(limits))
        if scores.measured(entry)
        else any_result.answer(entry, f"result{i}")
        for i, entry in enumerate(entries)
    ]


def _title(entries: Entries) -> str:
    made = [entry.result.provenance for entry in entries]
    models, metrics = (sorted({getattr(p, key) for p in made}) for key in ("model", "metric"))
    if len(models) == len(metrics) == 1 and all(map(scores.measured, entries)):
        return f"Which parts of {models[0]} change {metrics[0].removesuffix('()')}?"
    return f"{'Attribution' if all(metrics) else 'Results'} in {', '.join(models)}"


def _lead(entries: Entries) -> Markup:
    count = "One result" if len(entries) == 1 else f"{len(entries)} results"
    named = "; ".join(dict.fromkeys(entry.title for entry in entries))
    said = html.paragraph(f"{count}: {named}. Point at a figure for values.", "lead")
    measured = [entry for entry in entries if scores.measured(entry)]
    if not measured:
        return said
    facts = html.facts(scores.facts(measured[0]))
    return Markup("").join([said, facts, *sections.caution(measured[0].result)])


def _grouped(entries: Entries) -> list[list[Entry[Result]]]:
    """The results by what was read; those that read nothing are left out."""
    groups: dict[tuple[str, ...], list[Entry[Result]]] = {}
    for entry in entries:
        p = entry.result.provenance
        if p.task:
            groups.setdefault((p.subject, p.weights, p.task_hash), []).append(entry)
    return list(groups.values())


def _question(group: Entries) -> Markup:
    """The prompts, and what the model makes of them by each metric."""
    measured = {e.result.provenance.metric: e.result for e in group if scores.measured(e)}
    result = next(iter(measured.values()), group[0].result)
    p = result.provenance
    n = result.baselines.sizes["example"] if isinstance(result, Scores) else len(result.task)
    prompts = (
        html.paragraph("The file is of an older nnattr and does not hold the prompts.")
        if p.examples is None
        else sections.prompts(result.task)
    )
    return html.section(
        "The question" if measured else "The prompts",
        html.paragraph(f"{p.task}: {counted(n, 'example')} on {p.subject}."),
        prompts,
        *map(sections.baselines, measured.values()),
    )
