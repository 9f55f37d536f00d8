r"""Activation patching: what happens to the behaviour when one activation comes from the other run?

For a cell :math:`c` (a layer, a head, a position) the base run is repeated with the activation at
:math:`c` taken from the source run, everything downstream recomputed:

.. math:: \Delta m(c) = m(\text{base with } a_c := a_c^{source}) - m(\text{base})

Exact, one patched row per cell; many cells are rows of one forward pass.

It misleads when parts back each other up: patching one of two redundant heads in the noising
direction changes little though both matter, and the denoising direction finds what is sufficient
given the rest, not what is necessary. Effects of cells do not add up. (Vig et al. 2020; Meng et al.
2022; Wang et al. 2022; Heimersheim & Nanda 2024, arXiv:2404.15255.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.backend import Tick
from nnattr.methods.positions import Positions
from nnattr.methods.study import Direction, Study
from nnattr.metrics import Metric
from nnattr.model.runs import batch_of, examples, inputs, run, wrong_shape
from nnattr.model.sites import SiteName, read, write
from nnattr.model.view import Model
from nnattr.results import Scores
from nnattr.tasks import Task


def activation_patching(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    site: SiteName = "z",
    positions: Positions = "all",
    direction: Direction = "denoising",
    normalized: bool = True,
) -> Scores:
    """The exact effect of patching each cell of a site, one cell at a time.

    Args:
        model: from `load`.
        task: clean and corrupted prompts, encoded for this model.
        metric: ``LogitDiff()`` and the like, or a function ``(logits, batch) -> [example]``.
        site: which activation; ``"z"`` gives scores per head, the others per layer.
        positions: where (see `nnattr.methods.positions`); ``"each"`` gives scores per position.
        direction: ``"denoising"`` puts clean activations into the corrupted run, ``"noising"`` the
            reverse.
        normalized: divide by the task's mean gap between the runs: 0 = nothing changed, 1 = the
            whole way to the other run.

    Returns:
        scores with dims ``(example, layer[, head][, pos])``.

    Raises:
        TaskError: the runs do not differ, or task, positions and model do not fit together.
        ArchError: the model does not have the site.
        MetricError: the metric needs what the task lacks, or is not one finite number per example.
        BackendError: the job failed where it ran.

    Cost: one forward pass of the batch for each run, one row per cell and example in chunks, and an
    unpatched control of each chunk size (which makes patching a run with itself exactly 0).
    """
    study = Study(model, task, metric, site, positions, direction, normalized)
    return study.ask(patching_job, "activation_patching")


def patching_job(nn: Any, tick: Tick, **payload: Any) -> dict[str, Any]:
    """Patch every cell, a chunk of examples at a time."""
    n, rows = payload["base"]["ids"].shape[0], payload["rows"]
    step = min(n, rows)
    cells = payload["spots"].shape[0] * payload["units"]
    chunk = max(1, rows // step)
    forwards = -(-n // step) * len(payload["places"]) * -(-cells // chunk)
    parts: list[dict[str, Any]] = []
    for start in range(0, n, step):
        done = len(parts) * (forwards // -(-n // step))
        part = patch_examples(nn, tick, done, forwards, chunk, start, start + step, **payload)
        if "refused" in part:
            return part
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def patch_examples(
    nn: Any,
    tick: Tick,
    done: int,
    forwards: int,
    chunk: int,
    start: int,
    stop: int,
    *,
    base: dict[str, Tensor],
    source: dict[str, Tensor],
    base_is_clean: bool,
    answers: dict[str, Tensor],
    places: list[tuple[str, str]],
    units: int,
    spots: Tensor,
    metric: Metric,
    options: dict[str, Any],
    rows: int,
) -> dict[str, Any]:
    """Both baselines and the change of the metric for every cell of some examples."""
    base, source = examples(base, start, stop), examples(source, start, stop)
    answers, spots = examples(answers, start, stop), spots[:, start:stop]
    n = base["ids"].shape[0]
    theirs, source_logits = run(nn, source, places, options)
    ours, base_logits = run(nn, base, places, options)
    clean = (base_logits if base_is_clean else source_logits)[:, -1]
    base_value = metric(base_logits, batch_of(answers, base, clean))
    refusal = wrong_shape(base_value, n)
    if refusal:
        return {"refused": ("metric", refusal)}
    source_value = metric(source_logits, batch_of(answers, source, clean))
    control: dict[int, Tensor] = {}
    layers = []
    cells = [(spot, unit) for spot in range(spots.shape[0]) for unit in range(units)]
    for where, own, other in zip(places, ours, theirs, strict=True):
        changes = []
        for at in range(0, len(cells), chunk):
            some = cells[at : at + chunk]
            copies = len(some)
            batch = batch_of(answers, base, clean, copies)
            if copies not in control:
                control[copies] = metric(unpatched(nn, base, copies, options), batch)
            chosen = cell_mask(some, spots, units)
            logits = patched(nn, base, where, own, other, chosen, options)
            changes.append((metric(logits, batch) - control[copies]).view(copies, n))
            done += 1
            tick(done, forwards)
        layers.append(torch.cat(changes).view(spots.shape[0], units, n))
    return {
        "change": torch.stack(layers).permute(3, 0, 2, 1),
        "base": base_value,
        "source": source_value,
    }


def cell_mask(cells: list[tuple[int, int]], spots: Tensor, units: int) -> Tensor:
    """Where each cell lies: a mask [cell, example, pos, unit]."""
    unit = torch.eye(units, dtype=torch.bool)
    return torch.stack([spots[spot][..., None] & unit[one] for spot, one in cells])


def unpatched(nn: Any, base: dict[str, Tensor], copies: int, options: dict[str, Any]) -> Tensor:
    """The logits of the base run in a batch as large as a patched one."""
    with nn.trace(inputs(base, copies), **options):
        with torch.no_grad():
            logits = nn.output.logits
    return logits


def patched(
    nn: Any,
    base: dict[str, Tensor],
    where: tuple[str, str],
    own: Tensor,
    other: Tensor,
    chosen: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """The logits [cell * example, pos, d_vocab] with each row's chosen cell taken from ``other``.

    Only what differs between the runs is written, so that a run patched with itself is left as it
    is to the last bit, whatever the batch size.
    """
    copies, units = chosen.shape[0], chosen.shape[-1]
    with nn.trace(inputs(base, copies), **options):
        with torch.no_grad():
            live = read(nn, where)
            mask = (chosen.to(other.device)[..., None] & (other != own).unflatten(-1, (units, -1)))
            value = torch.where(
                mask.flatten(-2), other, live.unflatten(0, (copies, -1))
            ).flatten(0, 1)
            write(nn, where, value)
            logits = nn.output.logits
    return logits
