r"""Ablation: how much worse is the behaviour without a part of the model?

For a cell :math:`c` the run is repeated with its activation replaced by one that says nothing about
this prompt, everything downstream recomputed:

.. math:: \Delta m(c) = m(a_c := \tilde a_c) - m

A negative score means that the part helps. What stands for "nothing" decides what is measured:
zeros are far from anything the model has seen and break what relies on a constant part; a mean
keeps that part; resampling from other prompts stays within what the model knows, and is patching
from a prompt at random.

It misleads where parts back each other up: without one of two redundant heads little is lost, and
later heads may take over what an ablated one did (backup heads, self-repair). Ablate them together.
(Wang et al. 2022, arXiv:2211.00593; Chan et al. 2022, "causal scrubbing"; McGrath et al. 2023,
arXiv:2307.15771.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from nnattr.arguments import Folder, Positive, Seed, checked
from nnattr.engine import ablation_job, together_job
from nnattr.errors import TaskError
from nnattr.jobs import split
from nnattr.jobs.asked import Asked, Cells, Layers, Naming, asked_cells
from nnattr.jobs.replacement import Fill, Replacement, chosen
from nnattr.jobs.study import Study
from nnattr.metrics import Metric
from nnattr.model.components import required_position_table
from nnattr.model.heads import Head
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts
from nnattr.model.sites import SiteName
from nnattr.results import Scores
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions


@checked
def ablate(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    site: SiteName = "z",
    replacement: Replacement = "zero",
    positions: Positions = "all",
    cells: Cells | None = None,
    layers: Layers | None = None,
    heads: Head | Sequence[Head] | None = None,
    dataset: Prompts | None = None,
    seed: Seed = 0,
    engine: Literal["suffix", "full"] = "suffix",
    checkpoint: Folder | None = None,
    max_memory: Positive | None = None,
) -> Scores:
    """The change of the metric without each cell of a site, one cell at a time.

    Args:
        model: from `load`.
        task: its clean prompts are run; corrupted ones are not needed.
        metric: ``LogitDiff()`` and the like; ``Loss(last=n)`` for the loss on a repetition.
        site: which activation; ``"z"`` gives scores per head. (No ``"pattern"``: a head without its
            pattern is a head without its z.)
        replacement: what takes its place: ``"zero"``; ``"mean"`` over all tokens of the dataset;
            ``"mean_positional"``, over its prompts position by position; ``"resample"``, what
            another prompt of the same length has there.
        positions: where (see `nnattr.tasks.positions`); ``"each"`` gives scores per position.
        cells: as in `activation_patching`, to ablate only some cells, one at a time
            (`ablate_together` takes several out at once).
        layers: as there.
        heads: as there.
        dataset: prompts for the means and for resampling, as texts or a task (whose clean prompts
            count); by default the task's own clean prompts.
        seed: which prompts are drawn in resampling.
        engine: as in `activation_patching`, whose engine this uses.
        checkpoint: as there.
        max_memory: as there.

    Returns:
        scores with dims ``(example, layer[, head][, pos])`` in the metric's own units: the change
        that the ablation makes; NaN for cells that were not asked for. Only the clean run is a
        baseline.

    Raises:
        TaskError: positions that do not line up, prompts that do not fit, or as there for cells.
        ArchError: the model does not have the site, or the cells.
        MetricError, BackendError: as in `activation_patching`.

    Cost: that of `activation_patching`, and for a mean one forward pass over the dataset.
    """
    fill = chosen(model, task, replacement, dataset, seed)
    asked = asked_cells(model, task, site, positions, cells=cells, layers=layers, heads=heads)
    study = _study(model, task, metric, site, positions, fill, asked, max_memory)
    return _of_clean_run(split.run(replace(study, engine=engine), checkpoint))


@checked
def ablate_together(
    model: Model,
    task: Task,
    metric: Metric,
    parts: Cells,
    *,
    keep: bool = False,
    site: SiteName = "z",
    replacement: Replacement = "zero",
    positions: Positions = "all",
    dataset: Prompts | None = None,
    seed: Seed = 0,
    max_memory: Positive | None = None,
) -> Scores:
    """The change of the metric without several parts at once, or without everything else.

    Args:
        model: from `load`.
        task: its clean prompts are run.
        metric: as in `ablate`, as all the others here that are not explained; or a number for every
            position, such as ``Loss(per_position=True)``.
        parts: one or several cells, as `activation_patching` takes them (``(1, 0)``, ``"L1H0"``,
            ``"M3"``, ``scores.top(5)``); or ``"pos_embed"``, the learned position embeddings (with
            ``"zero"`` or ``"mean"``, at all positions).
        keep: ablate every part of the site but these: is this set enough?
        site: where the parts are.
        replacement: what takes their place.
        positions: where.
        dataset: prompts for the means and for resampling.
        seed: which prompts are drawn.
        max_memory: as in `activation_patching`.

    Returns:
        scores with the one dimension ``example``; with a metric for every position ``(example,
        pos)``, and the plain run's in ``scores.by_position``.

    Raises:
        TaskError, ArchError, MetricError, BackendError: as `ablate`; and for parts that the model
            does not have.

    Cost: two forward passes over the examples, and for a mean one over the dataset.
    """
    whole = isinstance(parts, str) and parts == "pos_embed"
    site = "resid_pre" if whole else site
    fill = chosen(model, task, replacement, dataset, seed)
    if whole:
        asked = _position_embeddings(model, replacement, positions)
    else:
        asked = Naming(model, task, site, positions).asked(parts, "parts", others=keep)
    asked = replace(asked, said={**asked.said, "keep": keep})
    study = _study(model, task, metric, site, positions, fill, asked, max_memory, together=True)
    return _of_clean_run(split.run(study))


def _study(
    model: Model,
    task: Task,
    metric: Metric,
    site: SiteName,
    positions: Positions,
    fill: Fill,
    asked: Asked,
    max_memory: int | None,
    together: bool = False,
) -> Study:
    """The ablation as a study: clean runs, patched from what is put in."""
    return Study(
        job=together_job if together else ablation_job,
        method="ablate_together" if together else "ablate",
        by_layer=not together,
        model=model,
        task=task,
        metric=metric,
        site=site,
        positions=positions,
        direction="noising",
        normalized=False,
        fill=fill,
        max_memory=max_memory,
        asked=asked,
        together=together,
    )


def _of_clean_run(scores: Scores) -> Scores:
    """The scores with the one baseline that an ablation has."""
    arrays = {"baselines": scores.baselines, "by_position": scores.by_position}
    clean = {name: one.sel(run=["clean"]) for name, one in arrays.items() if one is not None}
    return scores.with_arrays(**clean)


def _position_embeddings(model: Model, replacement: str, positions: Positions) -> Asked:
    """The learned position embeddings, if the model has them."""
    table = required_position_table(model)
    if replacement not in ("zero", "mean") or positions != "all":
        raise TaskError("Position embeddings are ablated with 'zero' or 'mean', at all positions.")
    return Asked(pos_embed=table, said={"parts": "pos_embed"})
