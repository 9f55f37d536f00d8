"""Every edge that is asked for, one at a time, with all else as it is in the base run.

With everything between its two ends frozen, an edge changes its receiver's input alone: by what
the sender changes in the residual stream (`senders`). The layer's own code says what the receiver
makes of that (`receivers`); from there on the row is an ordinary one of the engine (`edge_rows`),
and runs the layers above. An edge costs what is above its *receiver*, however far away the sender
is, and one into the logits no layer at all.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import BaseRun, base_run, first_difference
from nnattr.engine.edge_rows import Answers, HeadEdges, Reach, StreamEdges, plan
from nnattr.engine.ends import PORTS, Ends, Parts
from nnattr.engine.fastest import fastest, resumes
from nnattr.engine.forward import run
from nnattr.engine.memory import portions_for
from nnattr.engine.mode import Mode, reason
from nnattr.engine.packing import rows_per_sequence
from nnattr.engine.passes import passes
from nnattr.engine.patches import Entry, of_base_run
from nnattr.engine.question import Layout, Question, question_of
from nnattr.engine.receivers import Graphed
from nnattr.engine.rows import Rows, effort
from nnattr.engine.senders import BASE_STEPS, OTHER_STEPS, differing, require_sums
from nnattr.engine.sweep import DISAGREES, batches, why_full
from nnattr.engine.through_mlps import Sending, carried, stages
from nnattr.runs.as_built import touched
from nnattr.runs.edits import edited_layers
from nnattr.runs.inputs import cache_argument
from nnattr.runs.portions import Budget, RefusedError, ran_out
from nnattr.runs.tolerance import same_logits

#: Why edits and MLPs between do not go together.
EDITED = (
    "between='mlps' does not run attention, where the model's edits may be; use between='frozen'."
)
#: The tokens whose run takes as long as all else of a pass.
PASS = 64


def edges_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Both baselines and the change of the metric for every edge.

    A payload has besides a question's ``senders``, ``receivers`` and ``wanted`` (`Ends`), ``parts``
    (`Parts`), what is done with all ``between`` them, and whether to return the mean and standard
    error over examples alone (``reduced``).

    Returns:
        as `patching_job`, with ``change`` [example, receiver, sender, spot], NaN where there is no
        edge, and ``reached`` of the same shape: 1 where the sender's change could be measured, 0
        where the two runs agree in all that the edge could carry.
    """
    question = question_of(nn, payload)
    edges = Asking(nn, payload)
    portions = portions_for(nn, tick, payload, question, streams=kept_streams(question, edges))
    known, keep = payload.get("known"), payload.get("keep")
    if known is None:
        shape = len(question), *reversed(edges.ends.shape), len(question.spots)
        known = torch.full(shape, float("nan"))
    for some in portions:
        with portions.attempt():
            kept = None if keep is None or payload["reduced"] else partial(keep, some)
            asked = question.take(some)
            found = sweep(nn, portions.tick, asked, edges, portions.budget, known[some], kept)
            portions.keep(found, rows=0)  # its passes were counted as they ran
    found = portions.joined()
    if not payload["reduced"] or "change" not in found:
        return found
    return reduced(found, question.spots.any(-1).T, payload["readings"])


def kept_streams(question: Question, edges: Asking) -> int:
    """How many residual streams of an example are kept: where MLPs between are recomputed, many."""
    if not edges.by_mlps:
        return 0
    read = stages(edges.ends, question.layout.depth, edges.parts.parallel)
    return len(read) * len(edges.ends.kind) * len(question.spots)


class Asking:
    """What is asked of a model's edges, besides the question.

    Attributes:
        ends: which edges.
        parts: where their ends are.
        mid: the layout of a patch between attention and MLP.
        behind: the layout of a patch behind a layer.
        by_mlps: whether MLPs between sender and receiver are recomputed.
    """

    def __init__(self, nn: Any, payload: dict[str, Any]) -> None:
        plain, name = payload["layout"], cache_argument(nn)
        self.ends = Ends(payload["senders"], payload["receivers"], payload["wanted"])
        self.parts = Parts(payload["parts"])
        self.mid = Layout({**plain, "behind_norm": bool(self.parts.behind)}, name)
        self.behind = Layout({**plain, "entry": "added"}, name)
        self.by_mlps: bool = payload["between"] == "mlps"


class Kind:
    """The rows of one kind of edges, and how they are run.

    Attributes:
        question: whose layout says how they enter.
        patch: with what they enter.
        rows: all of them.
        mode: how they are run.
    """

    def __init__(self, question: Question, patch: Any, rows: Rows, mode: Mode) -> None:
        self.question = question
        self.patch = patch
        self.rows = rows
        self.mode = mode


def sweep(
    nn: Any,
    tick: Any,
    question: Question,
    edges: Asking,
    budget: Budget,
    known: Tensor,
    keep: Any = None,
) -> dict[str, Any]:
    """Both runs' metric and its change for every example, receiver, sender and spot.

    Rows whose change is ``known`` are left out of the passes; the others run as if these had just
    been done.
    """
    base, kinds = prepared(nn, question, edges, budget)
    change = torch.zeros(known.shape)
    reached = torch.zeros(known.shape)
    for kind in kinds:
        where = cells(edges.ends, kind.rows)
        change[where], reached[where] = known[where], 1.0
    for values in (change, reached):
        values.masked_fill_(~edges.ends.wanted.T[..., None], float("nan"))
    values = {
        "change": change,
        "reached": reached,
        "base": base.metric,
        "source": base.source_metric,
        "engine": "full" if any(kind.mode.full for kind in kinds) else "suffix",
        "fell_back": next((kind.mode.because for kind in kinds if kind.mode.because), ""),
        "dtype": str(base.logits.dtype),
    }
    total, done = sum(effort(question, kind.rows) for kind in kinds), 0
    for kind in kinds:
        mode = kind.mode
        for some, start in batches(kind.question, kind.rows, mode):
            size = 1
            if mode.packed:
                size = rows_per_sequence(kind.question, start, budget.tokens, mode.longest)
            left = some.take(change[cells(edges.ends, some)].isnan())
            done += effort(question, some) - effort(question, left)
            ran_there = passes(nn, kind.question, base, mode, budget, kind.patch, left, start, size)
            for ran, found in ran_there:
                change[cells(edges.ends, ran)] = found.float().cpu()
                done += effort(question, ran)
                tick(done, total)
                if keep is not None:
                    keep(values)
    return values


def cells(ends: Ends, rows: Rows) -> tuple[Tensor, ...]:
    """Where the changes of rows stand: their examples, receivers, senders and spots."""
    return rows.example, ends.receiver(rows.unit), ends.sender(rows.unit), rows.spot


def prepared(
    nn: Any, question: Question, edges: Asking, budget: Budget
) -> tuple[BaseRun, list[Kind]]:
    """What rows need, by the engine if it serves this model, else for full passes."""
    because = why_full(nn, question)
    if edges.by_mlps and edited_layers(nn):
        raise RefusedError("arch", EDITED)
    if not question.full_passes and not because:
        try:
            found = by_engine(nn, question, edges, budget)
            if found is not None:
                return found
            because = DISAGREES
        except Exception as error:  # whatever the model's own code has against a cache
            if isinstance(error, RefusedError) or ran_out(error):
                raise
            because = reason(error)
    base, _ = base_run(nn, question, True, *steps(edges))
    kinds = kinds_of(nn, question, edges, base, budget)
    for kind in kinds:
        kind.mode = Mode(full=True, because=because)
    return base, kinds


def by_engine(
    nn: Any, question: Question, edges: Asking, budget: Budget
) -> tuple[BaseRun, list[Kind]] | None:
    """What rows need that the engine runs; None if it does not give what full passes give."""
    into = set(edges.ends.port.tolist())
    short = into == {PORTS.index("logits")} and not worth_sharing(question)
    base, whole = base_run(nn, question, False, *steps(edges), whole_runs=short)
    kinds = kinds_of(nn, question, edges, base, budget)
    hooked = touched(nn, question.layout.layers)
    for kind in kinds:
        mode = None
        if only_logits(edges.ends, kind.rows) and hooked is None:
            if ends_alike(nn, kind.question, base):
                mode = Mode(narrow=True)
        elif resumes(nn, kind.question, base, kind.rows, whole, hooked):
            groups = by_port(edges.ends, kind.rows)
            mode = fastest(nn, kind.question, base, kind.rows, budget, hooked, kind.patch, groups)
        if mode is None:
            return None
        kind.mode = mode
    return base, kinds


def worth_sharing(question: Question) -> bool:
    """Whether it pays to run what all pairs share once, which is one pass more."""
    shared = first_difference(question)
    return len(question) * (2 * shared - question.base.width) > PASS


def steps(edges: Asking) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is read of the base run, and of the other run, besides z."""
    read = [PORTS[port] for port in edges.ends.port.unique().tolist()]
    ports = ("q", "k", "v") if any(port in HeadEdges.ports for port in read) else ()
    return (*BASE_STEPS, *ports), OTHER_STEPS


def kinds_of(
    nn: Any, question: Question, edges: Asking, base: BaseRun, budget: Budget
) -> list[Kind]:
    """The rows of edges into what reads the stream, and into heads, where there are any."""
    require_sums(base, question.layout.scale)
    ends, parts, mid = edges.ends, edges.parts, edges.mid
    known = Graphed(nn, question, base, ends, parts, mid, edges.by_mlps)
    differs = differing(known.writes, edges.ends, question.layout.sizes.heads)
    reach, found = Reach(question, differs, base.start), []
    if edges.by_mlps and base.streams:
        sending = Sending(nn, question, base, known.writes, ends, parts, mid)
        known.carried = carried(sending, reach.first, budget)
    behind = with_(question, layout=edges.behind)
    for asked, patch in ((behind, StreamEdges), (question, HeadEdges)):
        rows = plan(asked, edges.ends, reach, patch.ports)
        if len(rows):
            of_layer = torch.unique(rows.layer * len(question) + rows.example, return_counts=True)
            asked = with_(asked, units=int(of_layer[1].max()))
            answers = Answers(known, reach, budget)
            found.append(Kind(asked, patch(known, answers), rows, Mode()))
    return found


def with_(question: Question, **changed: Any) -> Question:
    """The same question but for some of its attributes."""
    return Question(**{**vars(question), **changed})


def by_port(ends: Ends, rows: Rows) -> list[Rows]:
    """The rows of each port."""
    port = ends.port[ends.receiver(rows.unit)]
    return [rows.take(port == one) for one in port.unique()]


def only_logits(ends: Ends, rows: Rows) -> bool:
    """Whether no row runs a layer."""
    return bool((ends.port[ends.receiver(rows.unit)] == PORTS.index("logits")).all())


def ends_alike(nn: Any, question: Question, base: BaseRun) -> bool:
    """Whether the base run's last stream, put behind its layers, gives the base run's logits.

    What a row into the logits does, without a sender's change: then nothing else is left to differ.
    """
    width = question.base.width
    start = width - 1 if question.last_only else base.start
    example = int((~question.base.mask).sum(1).argmax())
    row = Rows(torch.tensor([[example], [0], [0], [start], [question.layout.depth - 1]]))
    enter = partial(unchanged, base, start)
    logits = run(nn, question, base, row, enter, Mode(narrow=True), start)
    return same_logits(logits[0], base.logits[example, start - width :])


def unchanged(base: BaseRun, start: int, layer: int, rows: Rows) -> Entry:
    """The base run itself, as rows enter a layer."""
    return Entry(of_base_run(base.streams[layer], base, rows, start))


def reduced(found: dict[str, Any], there: Tensor, readings: int) -> dict[str, Any]:
    """The changes' mean and standard error over examples instead of each [2, ...].

    Of examples that have any position of a spot: ``there`` [example, spot]. With two ``readings``
    an example's change is that of the first less that of the second.
    """
    change = found["change"].double().masked_fill(~there[:, None, None], float("nan"))
    if readings == 2:
        first, second = change.chunk(2)
        change = first - second
    count = (~change.isnan()).sum(0)
    mean = change.nanmean(0)
    squares = ((change - mean) ** 2).nansum(0)
    error = (squares / (count - 1) / count).sqrt().masked_fill(count < 2, float("nan"))
    reached = found["reached"].amax(0, keepdim=True)
    return {**found, "change": torch.stack([mean, error]).float(), "reached": reached}
