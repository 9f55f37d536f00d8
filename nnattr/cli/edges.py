"""``nnattr edges``: what parts of a model read of each other, beside all that a part does.

An edge is small beside its sender's total effect where the sender acts through other parts, and
large where others take back what it does; so the two are shown side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnattr.cli.console import Block, table
from nnattr.graph import Part, parse
from nnattr.graph.choice import require_names
from nnattr.jobs.layout import PatchSite
from nnattr.methods.patching.activation_patching import activation_patching
from nnattr.methods.patching.path_patching import path_patching
from nnattr.metrics import LogitDiff
from nnattr.model.model import Model
from nnattr.results import EdgeScores
from nnattr.results.baselines import spelled
from nnattr.results.cells import cautioned
from nnattr.results.edge_scores import extent
from nnattr.tasks import Task

#: Where all that a sender writes is patched, by its kind.
SITES: dict[str, PatchSite] = {"head": "z", "mlp": "mlp_out", "input": "resid_pre"}


@dataclass(frozen=True)
class Found:
    """What the command measured.

    Attributes:
        scores: the edges that were asked for.
        rows: the strongest of them: the edge's name, its sender and its effect.
        totals: of every sender in the rows, activation patching of all that it writes.
    """

    scores: EdgeScores
    rows: tuple[tuple[str, Part, float], ...]
    totals: Mapping[Part, float]


def parts(role: str, text: str) -> list[str]:
    """The names of senders or receivers, which commas separate.

    Raises:
        ArchError: one is no part of any model.
    """
    names = [name.strip() for name in text.split(",")]
    require_names(role, names)
    return names


def measure(
    model: Model, task: Task, top: int, *, senders: list[str], receivers: list[str]
) -> Found:
    """The edges, and the total effect of the senders of the strongest.

    Raises:
        NnattrError: as `path_patching` and `activation_patching`.
    """
    scores = path_patching(model, task, LogitDiff(), senders=senders, receivers=receivers)
    assert isinstance(scores, EdgeScores)
    strongest = scores.top(top)
    rows = tuple((cell.label, parse(cell.index[0]), cell.value) for cell in strongest)
    return Found(scores, rows, totals(model, task, [sender for _, sender, _ in rows]))


def totals(model: Model, task: Task, senders: Sequence[Part]) -> dict[Part, float]:
    """The total effect of each sender: what it writes is that of the other run, for all to read."""
    found: dict[Part, float] = {}
    for kind, site in SITES.items():
        cells = {_cell(part): part for part in senders if part.kind == kind}
        if cells:
            scores = activation_patching(model, task, LogitDiff(), site=site, cells=list(cells))
            found |= {cells[cell.index]: cell.value for cell in scores.top(len(cells))}
    return found


def summary(found: Found) -> list[Block]:
    """The strongest edges, each beside all that its sender does."""
    scores, p = found.scores, found.scores.provenance
    direct = set(scores.raw["receiver"].values) == {"logits"}
    rows = [
        (name, f"{value:+.4f}", f"{found.totals[sender]:+.4f}")
        for name, sender, value in found.rows
    ]
    return [
        f"{p.subject} on {p.backend}",
        spelled(scores.baselines, p.metric),
        *cautioned(p.caution),
        f"{extent(scores)}.",
        "",
        "Share of the logit difference that comes back (0 none, 1 all) where the receiver alone "
        "reads what the sender writes in the clean run, and where every later part does:",
        "",
        table(("edge", "direct effect" if direct else "effect", "total effect of sender"), rows),
    ]


def _cell(part: Part) -> tuple[int, ...]:
    """The sender as a cell of its site; the input is what the first layer reads."""
    return tuple(n for n in (part.layer, part.number) if n is not None) or (0,)
