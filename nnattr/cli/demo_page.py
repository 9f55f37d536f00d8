"""The demo's answer as one page that opens without a network."""

from __future__ import annotations

from markupsafe import Markup

from nnattr.cli.demo import TOP, Demo
from nnattr.plots.look import limit_of
from nnattr.report import html, sections
from nnattr.report.values import NBSP, baseline, measured


def demo_page(demo: Demo) -> str:
    """The whole page as HTML."""
    lead = html.paragraph(
        "After “When Mary and John went to the store, John gave a drink to”, a language model "
        "that keeps track of who is who continues with “Mary”. This page asks which attention "
        f"heads of {demo.model.name} do that, twice: exactly, by patching one head at a time, and "
        "by an estimate for all heads from a single backward pass.",
        "lead",
    )
    parts = (_task, _baselines, _heads, _agreement, _positions, _made)
    return html.document(
        "Which heads identify the indirect object?",
        lead + _facts(demo),
        [write(demo) for write in parts],
    )


def _facts(demo: Demo) -> Markup:
    best, clean = demo.ranked[0][0], baseline(demo.exact, "clean")
    return html.facts(
        {
            "of the clean prompts prefer the right name": f"{clean.preferred:.0%}",
            f"of the logit difference moves with head {best.label} alone": f"{best.value:.0%}",
            "Pearson correlation of the estimate with the exact scores": (
                f"{demo.agreement.pearson:.3f}"
            ),
            "seconds of the exact method": f"{demo.exact.provenance.seconds:.2f}",
            "seconds of the estimate": f"{demo.estimate.provenance.seconds:.2f}",
        }
    )


def _task(demo: Demo) -> Markup:
    return html.section(
        "The question",
        html.paragraph(
            f"{len(demo.task)} pairs of prompts. The two of a pair differ in one name, which makes "
            "the other name the right continuation. The first ones:"
        ),
        sections.prompts(demo.task),
    )


def _baselines(demo: Demo) -> Markup:
    gap = baseline(demo.exact, "clean").mean - baseline(demo.exact, "corrupted").mean
    return html.section(
        "Does the model do the task?",
        html.paragraph(
            "The logit difference is the logit of the clean prompt's answer minus that of the "
            "other name: positive where the model prefers the former."
        ),
        sections.baselines(demo.exact),
        html.paragraph(
            f"From the corrupted to the clean run it moves by {gap:+.2f}. Scores below are shares "
            "of that: 0 changes nothing, 1 brings all of it back."
        ),
        *([html.paragraph(demo.warning)] if demo.warning else []),
    )


def _heads(demo: Demo) -> Markup:
    means = [scores.mean().values.to_numpy() for scores in (demo.exact, demo.estimate)]
    limit = max(limit_of(values, None) for values in means)
    maps = [
        sections.heat(scores, name, caption, heading, limit)
        for scores, name, heading, caption in (
            (demo.exact, "exact", "Activation patching (exact)", "One patched run per head."),
            (
                demo.estimate,
                "estimate",
                "Attribution patching (estimate)",
                "All heads from two forward passes and one backward pass; same colours.",
            ),
        )
    ]
    rows = [
        (
            str(rank),
            one.label,
            measured(one.value, one.stderr),
            other.label,
            measured(other.value, other.stderr),
        )
        for rank, (one, other) in enumerate(demo.ranked, 1)
    ]
    return html.section(
        "Which heads?",
        html.paragraph(
            "The corrupted prompt is run with the output of one head, at all positions, taken from "
            "the clean run. Blue heads move the model toward the clean prompt's answer, red ones "
            "away from it."
        ),
        html.side_by_side(*maps),
        html.table(
            f"The {TOP} strongest heads by each method (± standard error over the pairs)",
            ("", "exact", "score", "estimate", "score"),
            rows,
        ),
    )


def _agreement(demo: Demo) -> Markup:
    said, picture = sections.agreed(demo.exact, demo.estimate, "agreement")
    exact, estimate = demo.exact.provenance.seconds, demo.estimate.provenance.seconds
    return html.section(
        "Do the two agree?",
        html.paragraph(
            f"{said} Activation patching took {exact:.2f}{NBSP}s and attribution patching "
            f"{estimate:.2f}{NBSP}s. The estimate follows the slope at the corrupted run, so it is "
            "off where the model bends between the two runs."
        ),
        picture,
    )


def _positions(demo: Demo) -> Markup:
    scores = demo.by_position
    pairs = scores.baselines.sizes["example"]
    return html.section(
        "Where in the prompt?",
        html.paragraph(
            "The same patch for the residual stream before each layer, one position at a time, on "
            f"{pairs} pairs that share one template. It shows where the information that decides "
            "the answer is, layer by layer."
        ),
        *sections.caution(scores),
        sections.heat(
            scores,
            "positions",
            "IO is the indirect object, S1 and S2 are the two mentions of the subject, and … "
            "stands for words that differ between the pairs.",
        ),
    )


def _made(demo: Demo) -> Markup:
    n, seed = len(demo.task), demo.seed
    again = "\n".join(
        (
            "import nnattr",
            "",
            f"model = nnattr.load({demo.model.name!r})",
            f"task = nnattr.tasks.ioi(model.tokenizer, n={n}, seed={seed})",
            "exact = nnattr.activation_patching(model, task, nnattr.LogitDiff())",
            "estimate = nnattr.attribution_patching(model, task, nnattr.LogitDiff())",
            "exact.plot().show()",
        )
    )
    return html.section("How this was made", sections.origin(demo.exact), html.code(again))
