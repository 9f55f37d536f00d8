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
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from nnattr.arguments import Folder, Positive, Seed, checked
from nnattr.engine import ablation_job, together_job
from nnattr.errors import ArchError, TaskError
from nnattr.graph import Part, is_one, parse
from nnattr.jobs import split
from nnattr.jobs.layout import units
from nnattr.jobs.replacement import Fill, Replacement, chosen
from nnattr.jobs.study import Study
from nnattr.metrics import Metric
from nnattr.model.components import position_table
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts
from nnattr.model.sites import SiteName
from nnattr.results import Scores
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions

#: A cell of a set: (layer, head), (layer, kv_head) or (layer, neuron), a layer where the site has
#: none of these, or the name of such a part.
Cell: TypeAlias = int | tuple[int, int] | Sequence[int] | str | Part
#: The kinds of parts that cells are, by the axis of the site or, where it has none, by its name.
KINDS = {
    "head": "head",
    "kv_head": "kv",
    "neuron": "neuron",
    "resid_pre": "pre",
    "attn_out": "attn",
    "resid_mid": "mid",
    "mlp_out": "mlp",
}


@checked
def ablate(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    site: SiteName = "z",
    replacement: Replacement = "zero",
    positions: Positions = "all",
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
        dataset: prompts for the means and for resampling, as texts or a task (whose clean prompts
            count); by default the task's own clean prompts.
        seed: which prompts are drawn in resampling.
        engine: as in `activation_patching`, whose engine this uses.
        checkpoint: as there.
        max_memory: as there.

    Returns:
        scores with dims ``(example, layer[, head][, pos])`` in the metric's own units: the change
        that the ablation makes. Only the clean run is a baseline.

    Raises:
        TaskError: positions that do not line up, prompts that do not fit.
        ArchError: the model does not have the site.
        MetricError, BackendError: as in `activation_patching`.

    Cost: that of `activation_patching`, and for a mean one forward pass over the dataset.
    """
    fill = chosen(model, task, replacement, dataset, seed)
    study = _study(
        ablation_job, "ablate", model, task, metric, site, positions, fill, engine, max_memory
    )
    return _of_clean_run(split.run(study, checkpoint))


@checked
def ablate_together(
    model: Model,
    task: Task,
    metric: Metric,
    parts: Cell | Sequence[Cell],
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
        metric: as in `ablate`, as all the others here that are not explained.
        parts: one or several: ``(layer, head)`` or ``"L1H0"`` at sites that have heads (key/value
            heads, ``"L1KV0.k"``, at k and v), layers or names such as ``"M3"`` at the others; or
            ``"pos_embed"``, the learned position embeddings (with ``"zero"`` or ``"mean"``, at all
            positions).
        keep: ablate every part of the site but these: is this set enough?
        site: where the parts are.
        replacement: what takes their place.
        positions: where.
        dataset: prompts for the means and for resampling.
        seed: which prompts are drawn.
        max_memory: as in `activation_patching`.

    Returns:
        scores with the one dimension ``example``.

    Raises:
        TaskError, ArchError, MetricError, BackendError: as `ablate`; and for parts that the model
            does not have.

    Cost: two forward passes over the examples, and for a mean one over the dataset.
    """
    whole = isinstance(parts, str) and parts == "pos_embed"
    site = "resid_pre" if whole else site
    fill = chosen(model, task, replacement, dataset, seed)
    study = _study(
        together_job,
        "ablate_together",
        model,
        task,
        metric,
        site,
        positions,
        fill,
        "full",
        max_memory,
    )
    payload, cells = study.payload(), []
    if whole:
        payload |= _positions_payload(model, replacement, positions)
    else:
        cells = _cells(study, parts)
        payload |= {"ablated": _ablated(study, cells, keep), "pos_embed": None}
    label = "ablation of several parts"
    outcome = model.run(together_job, payload, label=label, said=study.frame().said)
    extra = {"parts": "pos_embed" if whole else _plain(study, cells), "keep": keep}
    return _of_clean_run(_one_number(study, extra, outcome))


def _study(
    job: Any,
    name: str,
    model: Model,
    task: Task,
    metric: Metric,
    site: SiteName,
    positions: Positions,
    fill: Fill,
    engine: str,
    max_memory: int | None,
) -> Study:
    """The ablation as a study: clean runs, patched from what is put in."""
    return Study(
        job=job,
        method=name,
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
        max_memory=max_memory,
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
            "places": None,
            "absent": ((False,),) * len(study.task),
            "provenance": provenance.model_copy(
                update={"arguments": {**provenance.arguments, **extra}}
            ),
        }
    )
    frame.refuse(outcome.values)
    scores = frame.scores(outcome.values, outcome.cost)
    return scores.with_arrays(raw=scores.raw.isel(layer=0, drop=True))


def _plain(study: Study, cells: Sequence[tuple[int, int]]) -> list[Any]:
    """The cells as a provenance keeps them: [layer, unit], or the layer."""
    unit = units(study.model, study.site)[0]
    return [layer if unit is None else [layer, index] for layer, index in cells]


def _cells(study: Study, parts: Cell | Sequence[Cell]) -> list[tuple[int, int]]:
    """The parts as (layer, unit); the unit is 0 at sites that have none.

    Raises:
        TaskError: something that is not a part of the site.
        ArchError: the model does not have it.
    """
    model, (unit, count) = study.model, units(study.model, study.site)
    alone = isinstance(parts, int) or (is_one(parts) and (unit or isinstance(parts, str | Part)))
    found = []
    for part in [parts] if alone else parts:  # type: ignore[union-attr]
        named = _named(study.site, unit, part) if isinstance(part, str | Part) else part
        cell = (named, 0) if isinstance(named, int) and unit is None else named
        if not isinstance(cell, Sequence) or len(cell) != 2 or (named is cell) != bool(unit):
            like = f"(layer, {unit}) tuples" if unit else "layers, as whole numbers"
            raise TaskError(f"{part!r} is not a part of the site {study.site!r}; expected {like}.")
        layer, index = cell
        if layer not in range(model.n_layers) or index not in range(count):
            of = f" of {count} {unit}s each" if unit else ""
            raise ArchError(
                f"{model.name} has no part {part!r} at {study.site!r}: it has {model.n_layers} "
                f"layers{of}, counted from 0."
            )
        found.append((layer, index))
    return found


def _named(site: str, unit: str | None, given: str | Part) -> Any:
    """What a part's name stands for at this site: (layer, unit) or a layer; None if nothing."""
    part = parse(given)
    if part.kind != KINDS.get(unit or site) or part.port not in (None, site):
        return None
    return part.layer if unit is None else (part.layer, part.number)


def _ablated(study: Study, cells: Sequence[tuple[int, int]], keep: bool) -> Tensor:
    """Which units of which layers are replaced [layer, unit]."""
    found = torch.zeros(study.model.n_layers, units(study.model, study.site)[1], dtype=torch.bool)
    if not cells and not keep:
        raise TaskError("No parts were given to ablate; name at least one.")
    for cell in cells:
        found[cell] = True
    return ~found if keep else found


def _positions_payload(model: Model, replacement: str, positions: Positions) -> dict[str, Any]:
    """Where the learned position embeddings are."""
    table = position_table(model)
    if table is None:
        raise ArchError(
            f"{model.name} has no learned position embeddings to ablate (rotary, ALiBi or none)."
        )
    if replacement not in ("zero", "mean") or positions != "all":
        raise TaskError("Position embeddings are ablated with 'zero' or 'mean', at all positions.")
    return {"ablated": None, "pos_embed": table, "dataset": {}}
