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
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from nnattr.engine import ablation_job, together_job
from nnattr.errors import ArchError, TaskError
from nnattr.jobs.layout import units
from nnattr.jobs.replacement import Dataset, FillKind, chosen
from nnattr.jobs.study import Study
from nnattr.methods.components import position_table
from nnattr.metrics import Metric
from nnattr.model.model import Model
from nnattr.model.sites import SITES, SiteName
from nnattr.results import Scores
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions

#: A cell of a set: (layer, head), (layer, kv_head) or (layer, neuron); a layer where the site has
#: none of these.
Part: TypeAlias = int | tuple[int, int]


def ablate(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    site: SiteName = "z",
    method: FillKind = "zero",
    positions: Positions = "all",
    dataset: Dataset | None = None,
    seed: int = 0,
    engine: Literal["suffix", "full"] = "suffix",
    checkpoint: str | Path | None = None,
) -> Scores:
    """The change of the metric without each cell of a site, one cell at a time.

    Args:
        model: from `load`.
        task: its clean prompts are run; corrupted ones are not needed.
        metric: ``LogitDiff()`` and the like; ``Loss(last=n)`` for the loss on a repetition.
        site: which activation; ``"z"`` gives scores per head. (No ``"pattern"``: a head without its
            pattern is a head without its z.)
        method: what takes its place: ``"zero"``; ``"mean"`` over all tokens of the dataset;
            ``"mean_positional"``, over its prompts position by position; ``"resample"``, what
            another prompt of the same length has there.
        positions: where (see `nnattr.tasks.positions`); ``"each"`` gives scores per position.
        dataset: prompts for the means and for resampling, as texts or a task (whose clean prompts
            count); by default the task's own clean prompts.
        seed: which prompts are drawn in resampling.
        engine: as in `activation_patching`, whose engine this uses.
        checkpoint: as there.

    Returns:
        scores with dims ``(example, layer[, head][, pos])`` in the metric's own units: the change
        that the ablation makes. Only the clean run is a baseline.

    Raises:
        TaskError: an unknown method, positions that do not line up, prompts that do not fit.
        ArchError: the model does not have the site.
        MetricError, BackendError: as in `activation_patching`.

    Cost: that of `activation_patching`, and for a mean one forward pass over the dataset.
    """
    study = _study(
        ablation_job, model, task, metric, site, method, positions, dataset, seed, engine
    )
    return _of_clean_run(study.run(checkpoint))


def ablate_together(
    model: Model,
    task: Task,
    metric: Metric,
    parts: Sequence[Part] | Literal["pos_embed"],
    *,
    keep: bool = False,
    site: SiteName = "z",
    method: FillKind = "zero",
    positions: Positions = "all",
    dataset: Dataset | None = None,
    seed: int = 0,
) -> Scores:
    """The change of the metric without several parts at once, or without everything else.

    Args:
        model: from `load`.
        task: its clean prompts are run.
        metric: as in `ablate`, as all the others here that are not explained.
        parts: ``(layer, head)`` tuples at sites that have heads (key/value heads at k and v),
            layers at the others; or ``"pos_embed"``, the learned position embeddings (with
            ``"zero"`` or ``"mean"``, at all positions).
        keep: ablate every part of the site but these: is this set enough?
        site: where the parts are.
        method: what takes their place.
        positions: where.
        dataset: prompts for the means and for resampling.
        seed: which prompts are drawn.

    Returns:
        scores with the one dimension ``example``.

    Raises:
        TaskError, ArchError, MetricError, BackendError: as `ablate`; and for parts that the model
            does not have.

    Cost: two forward passes over the examples, and for a mean one over the dataset.
    """
    whole = isinstance(parts, str)
    site = "resid_pre" if whole else site
    study = _study(
        together_job, model, task, metric, site, method, positions, dataset, seed, "full"
    )
    payload = study.payload()
    if whole:
        payload |= _positions_payload(model, parts, method, positions)
    else:
        payload |= {"ablated": _ablated(study, parts, keep), "pos_embed": None}
    label = "ablation of several parts"
    outcome = model.run(together_job, payload, label=label, said=study.frame().said)
    extra = {"parts": parts if whole else [_plain(part) for part in parts], "keep": keep}
    return _of_clean_run(_one_number(study, extra, outcome))


def _study(
    job: Any,
    model: Model,
    task: Task,
    metric: Metric,
    site: SiteName,
    method: FillKind,
    positions: Positions,
    dataset: Dataset | None,
    seed: int,
    engine: str,
) -> Study:
    """The ablation as a study: clean runs, patched from what the method puts in."""
    if site not in SITES:
        raise ArchError(f"{site!r} cannot be ablated; the sites are {', '.join(SITES)}.")
    fill = chosen(model, task, method, dataset, seed)
    return Study(
        job=job,
        method="ablation",
        by_layer=True,
        model=model,
        task=task,
        metric=metric,
        site=site,
        positions=positions,
        direction="noising",
        normalized=False,
        engine=engine,
        fill=fill,
    )


def _of_clean_run(scores: Scores) -> Scores:
    """The scores with the one baseline that an ablation has."""
    return scores.with_arrays(baselines=scores.baselines.sel(run=["clean"]))


def _one_number(study: Study, extra: dict[str, Any], outcome: Any) -> Scores:
    """The change of each example, checked and labelled."""
    frame = study.frame()
    provenance = frame.provenance
    frame = frame.model_copy(
        update={
            "layers": 1,
            "units": 1,
            "cells": 1,
            "unit": None,
            "tokens": None,
            "absent": ((False,),) * len(study.task),
            "provenance": provenance.model_copy(
                update={"arguments": {**provenance.arguments, **extra}}
            ),
        }
    )
    frame.refuse(outcome.values)
    scores = frame.scores(outcome.values, outcome.cost)
    return scores.with_arrays(raw=scores.raw.isel(layer=0, drop=True))


def _plain(part: Part) -> Any:
    return list(part) if isinstance(part, tuple) else part


def _ablated(study: Study, parts: Sequence[Part], keep: bool) -> Tensor:
    """Which units of which layers are replaced [layer, unit]."""
    model, (unit, count) = study.model, units(study.model, study.site)
    found = torch.zeros(model.n_layers, count, dtype=torch.bool)
    if not len(parts) and not keep:
        raise TaskError("No parts were given to ablate; name at least one.")
    for part in parts:
        if isinstance(part, tuple) != (unit is not None):
            like = f"(layer, {unit}) tuples" if unit else "layers, as whole numbers"
            raise TaskError(f"{part!r} is no part of the site {study.site!r}; expected {like}.")
        layer, index = part if isinstance(part, tuple) else (part, 0)
        if layer not in range(model.n_layers) or index not in range(count):
            of = f" of {count} {unit}s each" if unit else ""
            raise ArchError(
                f"{model.name} has no part {part!r} at {study.site!r}: it has {model.n_layers} "
                f"layers{of}, counted from 0."
            )
        found[layer, index] = True
    return ~found if keep else found


def _positions_payload(
    model: Model, parts: str, method: str, positions: Positions
) -> dict[str, Any]:
    """Where the learned position embeddings are."""
    table = position_table(model)
    if parts != "pos_embed":
        raise TaskError(f"parts is {parts!r}; expected a list of parts, or 'pos_embed'.")
    if table is None:
        raise ArchError(
            f"{model.name} has no learned position embeddings to ablate (rotary, ALiBi or none)."
        )
    if method not in ("zero", "mean") or positions != "all":
        raise TaskError("Position embeddings are ablated with 'zero' or 'mean', at all positions.")
    return {"ablated": None, "pos_embed": table, "dataset": {}}
