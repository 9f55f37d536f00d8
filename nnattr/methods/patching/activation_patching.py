r"""Activation patching: what happens to the behaviour when one activation comes from the other run?

For a cell :math:`c` (a layer, a head, a position) the base run is repeated with the activation at
:math:`c` taken from the source run, everything downstream recomputed:

.. math:: \Delta m(c) = m(\text{base with } a_c := a_c^{source}) - m(\text{base})

Exact, one patched row per cell, of which only the layers and positions that can change are run.

It misleads when parts back each other up: patching one of two redundant heads in the noising
direction changes little though both matter, and the denoising direction finds what is sufficient
given the rest, not what is necessary. Effects of cells do not add up. (Vig et al. 2020; Meng et al.
2022; Wang et al. 2022; Heimersheim & Nanda 2024, arXiv:2404.15255.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from nnattr.arguments import Folder, Positive, checked
from nnattr.engine import patching_job, together_job
from nnattr.jobs import split
from nnattr.jobs.asked import Cells, Layers, asked_cells
from nnattr.jobs.layout import PatchSite
from nnattr.jobs.study import Direction, Study
from nnattr.metrics import Metric
from nnattr.model.heads import Head
from nnattr.model.model import Model
from nnattr.results import Scores
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions


@checked
def activation_patching(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    site: PatchSite = "z",
    positions: Positions = "all",
    cells: Cells | None = None,
    layers: Layers | None = None,
    heads: Head | Sequence[Head] | None = None,
    together: bool = False,
    direction: Direction = "denoising",
    normalized: bool = True,
    engine: Literal["suffix", "full"] = "suffix",
    checkpoint: Folder | None = None,
    max_memory: Positive | None = None,
) -> Scores:
    """The exact effect of patching each cell of a site, one cell at a time or several at once.

    Args:
        model: from `load`.
        task: clean and corrupted prompts, encoded for this model.
        metric: ``LogitDiff()`` and the like, or a function ``(logits, batch) -> [example]``.
        site: which activation. ``"z"``, ``"q"`` and ``"pattern"`` give scores per head, ``"k"`` and
            ``"v"`` per key/value head, ``"neuron"`` per neuron, the others per layer. Patching q or
            k before or after a rotary turn is the same. The position of a pattern is the query's.
        positions: where (see `nnattr.tasks.positions`); ``"each"`` gives scores per position.
        cells: only these cells, the others are NaN and not computed: ``[(9, 6), "L10H0"]``, layers
            or ``"M3"`` at sites without heads, with a position (``(9, 6, 12)``) where
            ``positions="each"``, or a ranking, ``estimate.top(20)`` (see `nnattr.jobs.asked`).
        layers: only the cells of these layers, instead.
        heads: only these heads (or key/value heads) of any layers, instead.
        together: patch all of these cells at once, in one run: are they enough, or needed, as a
            set? Their separate scores do not add up to it.
        direction: ``"denoising"`` puts clean activations into the corrupted run, ``"noising"`` the
            reverse.
        normalized: divide by the task's mean gap between the runs: 0 = nothing changed, 1 = the
            whole way to the other run.
        engine: ``"suffix"`` computes only what a patch can change (`nnattr.engine`), and is
            compared with full passes on a few rows of every job; a model that it does not serve
            exactly is patched by full passes, and provenance says so. ``"full"`` asks for them.
        checkpoint: a folder for what is found: the same call takes up what is there. Locally it is
            kept about once a second while the call runs; on a server after every job, of which
            there is one unless the backend has limits.
        max_memory: bytes to plan with besides the weights, where the job runs; by default most of
            what is free there (see `nnattr.engine.memory`). Provenance has the peak.

    Returns:
        scores with dims ``(example, layer[, head or kv_head][, pos][, neuron])``, NaN where a cell
        was not asked for; with ``together`` of ``(example,)``, or of ``(example, pos)`` where the
        metric is a number for every position (``Loss(per_position=True)``).

    Raises:
        TaskError: the runs do not differ; task, positions and model do not fit together; or cells
            are none of the site's, named twice, or in more than one of the three ways.
        ArchError: the model does not have the site or the cells, or heads that are not pattern
            times values.
        MetricError: the metric needs what the task lacks, or is not one finite number per example.
        BackendError: the job failed where it ran.

    Cost: one forward pass of each run, and for each cell and example the layers above the cell on
    the positions from the first one that it changes. Patterns cost four more passes, and memory for
    [head, query_pos, key_pos] numbers of every layer and example. Cells that are not asked for cost
    nothing; ``together`` costs one full pass.
    """
    asked = asked_cells(model, task, site, positions, cells=cells, layers=layers, heads=heads)
    if together:
        asked = replace(asked, said={**asked.said, "together": True})
    study = Study(
        together_job if together else patching_job,
        "activation_patching",
        not together,
        model,
        task,
        metric,
        site,
        positions,
        direction,
        normalized,
        engine,
        max_memory=max_memory,
        asked=asked,
        together=together,
    )
    return split.run(study, checkpoint)
