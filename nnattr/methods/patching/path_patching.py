r"""Path patching: what happens to the behaviour when one part alone reads what another one writes?

An edge :math:`u \to v` is a part that writes and a part that reads: a head's query, key or value,
an MLP, or the logits. In the base run :math:`v` alone is given the input

.. math:: x_v' = x_v + \Delta_u, \qquad \Delta_u = u(\text{other run}) - u(\text{base run})

and everything after :math:`v` is recomputed. All that lies between the two keeps the base run
(``between="frozen"``), so what is measured is the direct connection. Exact: the layer's own code
says what :math:`v` makes of :math:`x_v'` (`nnattr.engine.receivers`).

What :math:`u` writes in a layout is said in `nnattr.engine.senders`. Where a norm stands behind
attention (Gemma 2 and 3, OLMo 2), a head's write is what the norm's output gains by it, the layer's
other heads being those of the base run. Where a norm runs over the queries, or keys, of all heads
(OLMo 2), one head's query is a part of what the norm makes of the changed input.

The name has two meanings. In the IOI paper the MLPs between :math:`u` and :math:`v` are recomputed,
and only heads are frozen, so that an effect is the sum over all ways through MLPs.

It misleads where people add up: effects of single edges do not sum to that of a set, and later
parts may make up for what one edge took away (self-repair). An edge whose sender writes the same in
both runs is not tested by these prompts, and the result says so. (Wang et al. 2022,
arXiv:2211.00593; Goldowsky-Dill et al. 2023, arXiv:2304.05969.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from nnattr.arguments import Folder, Positive, checked
from nnattr.engine import edges_job
from nnattr.graph import Edge, Part, chosen
from nnattr.jobs import split
from nnattr.jobs.edge_study import EdgeStudy
from nnattr.jobs.study import Direction
from nnattr.metrics import Metric
from nnattr.model.graph import graph_of
from nnattr.model.model import Model
from nnattr.results import EdgeScores
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions

#: A part, by its name or as (layer, head).
PartName: TypeAlias = str | tuple[int, int] | Part
#: An edge, by its name or as (sender, receiver).
EdgeName: TypeAlias = str | tuple[PartName, PartName] | Edge


@checked
def path_patching(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    senders: PartName | Sequence[PartName] = "all",
    receivers: PartName | Sequence[PartName] = "logits",
    edges: EdgeName | Sequence[EdgeName] | None = None,
    between: Literal["frozen"] = "frozen",
    ungrouped: bool = False,
    positions: Positions = "all",
    direction: Direction = "denoising",
    normalized: bool = True,
    per_example: bool | None = None,
    engine: Literal["suffix", "full"] = "suffix",
    checkpoint: Folder | None = None,
    max_memory: Positive | None = None,
) -> EdgeScores:
    """The exact effect of each edge, one at a time: its receiver reads the other run's sender.

    Args:
        model: from `load`.
        task: clean and corrupted prompts, encoded for this model.
        metric: ``LogitDiff()`` and the like, or a function ``(logits, batch) -> [example]``.
        senders: parts that write: ``"all"``, ``"heads"``, ``"mlps"``, ``"input"`` (what enters the
            first layer), ``"L3H2"`` or ``(3, 2)``, ``"M3"``, or a list of these.
        receivers: parts that read: ``"all"``, ``"heads"``, ``"mlps"``, ``"q"``, ``"k"``, ``"v"``,
            ``"logits"``, ``"L5H1.q"``, ``"M5"``, or a list. A head means its query, its key and its
            value, each a score; ``"L5H1.qk"`` is query and key at once, so its pattern. Where heads
            share keys and values, these are ``"L5KV0.k"`` and ``"L5KV0.v"``.
        edges: these instead of all pairs of senders and receivers, as ``("L3H2", "L5H1.q")`` or
            ``"L3H2->L5H1.q"``.
        between: what is done with the parts between. ``"frozen"``: all keep the base run.
        ungrouped: give every head a key and a value of its own where the model shares them, to
            compare with published circuits: then that head's scores alone change.
        positions: where the sender changes (see `nnattr.tasks.positions`); ``"each"`` gives scores
            per position.
        direction: ``"denoising"`` puts the clean run's writes into the corrupted run, ``"noising"``
            the reverse.
        normalized: divide by the task's mean gap between the runs: 0 = nothing changed, 1 = the
            whole way to the other run.
        per_example: keep a score for every example. By default while all of them take 16 MB or
            less, else their mean and standard error; provenance says which.
        engine: ``"suffix"`` runs only the layers above a receiver, and is compared with full passes
            on a few edges of every job; ``"full"`` asks for full passes.
        checkpoint: as in `activation_patching`.
        max_memory: as there.

    Returns:
        scores with dims ``(example, sender, receiver[, pos])``, NaN where there is no edge.

    Raises:
        ArchError: parts or edges that this model does not have, or edits under which its stream is
            no sum of what parts write.
        TaskError: the runs do not differ, or task, positions and model do not fit together.
        MetricError: the metric needs what the task lacks, or is not one finite number per example.
        BackendError: the job failed where it ran.

    Cost: one forward pass of each run; for every sender and layer of receivers a run of that
    layer's attention, or MLP; for every edge and example the layers above its receiver, on the
    positions from the first one that it changes. Into the logits no layer is run.
    """
    choice = chosen(graph_of(model, ungrouped=ungrouped), senders, receivers, edges)
    asked: dict[str, Any] = {
        "senders": _named(senders),
        "receivers": _named(receivers),
        "edges": _named(edges),
        "between": between,
        "ungrouped": ungrouped,
    }
    study = EdgeStudy(
        edges_job,
        "path_patching",
        True,
        model,
        task,
        metric,
        "z",
        positions,
        direction,
        normalized,
        engine,
        max_memory=max_memory,
        choice=choice,
        arguments=asked,
        per_example=per_example,
    )
    found = split.run(study, checkpoint)
    assert isinstance(found, EdgeScores)
    return found


def _named(given: Any) -> Any:
    """Parts and edges by their names."""
    if isinstance(given, list | tuple):
        return [_named(one) for one in given]
    return str(given) if isinstance(given, Part | Edge) else given
