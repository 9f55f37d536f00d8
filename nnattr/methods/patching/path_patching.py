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
and only heads are frozen, so that an effect is the sum over all ways through MLPs
(``between="mlps"``).

Two more questions are asked of whole runs. ``together=True`` patches a set of edges :math:`E` at
once, nothing being frozen: every receiver of the set reads

.. math:: x_v' = x_v^{live} + \sum_{u: (u, v) \in E} (u(\text{other run}) - u^{live})

so that all edges into a head's query are that query patched (`nnattr.engine.joint_pass`). ``paths``
follow one chain of edges each, with everything off it frozen (`nnattr.engine.chains`).

It misleads where people add up: effects of single edges do not sum to that of a set, and later
parts may make up for what one edge took away (self-repair). An edge whose sender writes the same in
both runs is not tested by these prompts, and the result says so. (Wang et al. 2022,
arXiv:2211.00593; Goldowsky-Dill et al. 2023, arXiv:2304.05969.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from nnattr.arguments import Folder, Positive, checked
from nnattr.engine import chains_job, edges_job, joint_edges_job
from nnattr.errors import ArchError, ArgumentError, TaskError
from nnattr.graph import Edge, Part, chosen, parse_path
from nnattr.graph.missing import require_edge
from nnattr.jobs import split
from nnattr.jobs.edge_runs import VariantStudy, name_of
from nnattr.jobs.edge_study import EdgeStudy
from nnattr.jobs.study import Direction
from nnattr.metrics import Metric
from nnattr.model.graph import graph_of
from nnattr.model.model import Model
from nnattr.results import EdgeScores, Scores
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions

#: A part, by its name or as (layer, head).
PartName: TypeAlias = str | tuple[int, int] | Part
#: An edge, by its name or as (sender, receiver).
EdgeName: TypeAlias = str | tuple[PartName, PartName] | Edge
#: A path, by its name or as its parts.
PathName: TypeAlias = str | Sequence[PartName]


@checked
def path_patching(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    senders: PartName | Sequence[PartName] = "all",
    receivers: PartName | Sequence[PartName] = "logits",
    edges: EdgeName | Sequence[EdgeName] | None = None,
    paths: PathName | Sequence[PathName] | None = None,
    together: bool = False,
    between: Literal["frozen", "mlps"] = "frozen",
    ungrouped: bool = False,
    positions: Positions = "all",
    direction: Direction = "denoising",
    normalized: bool = True,
    per_example: bool | None = None,
    engine: Literal["suffix", "full"] = "suffix",
    checkpoint: Folder | None = None,
    max_memory: Positive | None = None,
) -> EdgeScores | Scores:
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
        paths: the effect along each of these chains instead, ``"L3H2 -> L5H1.k -> logits"``. A head
            on the way is named with what it reads by, and writes on alone.
        together: patch all of the edges at once and freeze nothing.
        between: what is done with the parts between. ``"frozen"``: all keep the base run.
            ``"mlps"``: heads do, MLPs and norms are recomputed, as in the IOI paper; an effect is
            then the sum over all ways through MLPs.
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
        scores with dims ``(example, sender, receiver[, pos])``, NaN where there is no edge; with
        ``paths`` `Scores` with dims ``(example, path)``, with ``together`` with ``(example,)``.

    Raises:
        ArgumentError: two of edges, paths, and senders or receivers.
        ArchError: parts or edges that this model does not have, or edits under which its stream is
            no sum of what parts write.
        TaskError: the runs do not differ, or task, positions and model do not fit together.
        MetricError: the metric needs what the task lacks, or is not one finite number per example.
        BackendError: the job failed where it ran.

    Cost: one forward pass of each run; for every sender and layer of receivers a run of that
    layer's attention, or MLP; for every edge and example the layers above its receiver, on the
    positions from the first one that it changes. Into the logits no layer is run. With
    ``between="mlps"`` besides the MLPs above every sender. ``together`` is one run, from the first
    layer with a receiver and the first position at which the prompts differ, with a norm and its
    part of a projection for every receiver. A path runs the layers of the parts on its way.
    """
    common: dict[str, Any] = {
        "method": "path_patching",
        "model": model,
        "task": task,
        "metric": metric,
        "site": "z",
        "positions": positions,
        "direction": direction,
        "normalized": normalized,
        "engine": engine,
        "max_memory": max_memory,
    }
    ends = {"senders": _named(senders), "receivers": _named(receivers), "edges": _named(edges)}
    _require_one_way(senders, receivers, edges, paths)
    _require_one_question(paths is not None, together, between, positions)
    if paths is not None:
        chains = _chains(model, paths)
        asked = {"paths": [name_of(chain) for chain in chains]}
        study = VariantStudy(job=chains_job, by_layer=True, what=chains, arguments=asked, **common)
        return split.run(study, checkpoint)
    choice = chosen(graph_of(model, ungrouped=ungrouped), senders, receivers, edges)
    if together:
        asked = {**ends, "together": True, "ungrouped": ungrouped}
        study = VariantStudy(
            job=joint_edges_job, by_layer=False, what=choice, arguments=asked, **common
        )
        return split.run(study, checkpoint)
    asked = {**ends, "between": between, "ungrouped": ungrouped}
    study = EdgeStudy(
        job=edges_job,
        by_layer=True,
        choice=choice,
        arguments=asked,
        per_example=per_example,
        **common,
    )
    return split.run(study, checkpoint)


def _require_one_way(senders: Any, receivers: Any, edges: Any, paths: Any) -> None:
    """Refuse edges that are named in two ways; ends as they are by default name none."""
    by_default = {"senders": "all", "receivers": "logits", "edges": None, "paths": None}
    values = (senders, receivers, edges, paths)
    given = [
        f"{name}="
        for (name, default), value in zip(by_default.items(), values, strict=True)
        if value != default
    ]
    if {"edges=", "paths="} & set(given) and len(given) > 1:
        raise ArgumentError(
            f"path_patching: {' and '.join(given)} were given; name the edges by senders= and "
            "receivers=, or by edges=, or by paths=, and leave the others out."
        )


def _require_one_question(paths: bool, together: bool, between: str, positions: Positions) -> None:
    """Refuse arguments of two questions at once."""
    asked = "paths=" if paths else "together=True"
    if paths and together:
        raise TaskError("Paths are followed one by one; leave together= or paths= out.")
    if (paths or together) and between != "frozen":
        raise TaskError(
            f"between={between!r} is about single edges; leave it out with {asked}: "
            + ("all that is off a path is frozen." if paths else "nothing is frozen.")
        )
    if (paths or together) and isinstance(positions, str) and positions == "each":
        raise TaskError(f"{asked} gives one number per example; expected some positions, not each.")


def _chains(model: Model, paths: PathName | Sequence[PathName]) -> tuple[tuple[Edge, ...], ...]:
    """The paths, each as its edges; on one a head may read a shared key alone."""
    graph = graph_of(model, ungrouped=True)
    each: Sequence[Any] = [paths] if isinstance(paths, str) else paths
    found = tuple(parse_path(path) for path in each)
    if not found:
        raise ArchError("No paths were given; name one, such as 'L3H2 -> L5H1.k -> logits'.")
    for edge in (edge for path in found for edge in path):
        require_edge(graph, edge)
    return found


def _named(given: Any) -> Any:
    """Parts and edges by their names."""
    if isinstance(given, list | tuple):
        return [_named(one) for one in given]
    return str(given) if isinstance(given, Part | Edge) else given
