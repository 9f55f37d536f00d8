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

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.backend import Tick
from nnattr.methods.positions import Positions
from nnattr.methods.study import Direction, Study
from nnattr.metrics import Metric
from nnattr.model.runs import asks, gather, inputs, measure, refusal, repeated, run
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
    checkpoint: str | Path | None = None,
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
        checkpoint: a folder for finished parts: the same call takes up what is there. Locally a
            part is a layer; on a server a job, of which there is one unless the backend has limits.

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
    study = Study(
        patching_job,
        "activation_patching",
        True,
        model,
        task,
        metric,
        site,
        positions,
        direction,
        normalized,
    )
    return study.run(checkpoint)


def patching_job(nn: Any, tick: Tick, **payload: Any) -> dict[str, Any]:
    """Both baselines and the change of the metric for every cell."""
    cells = [
        (spot, unit) for spot in range(len(payload["spots"])) for unit in range(payload["units"])
    ]
    parts: list[dict[str, Any]] = []
    for ask in asks(payload):
        theirs, source_logits = run(nn, ask.source, ask.places, ask.options)
        ours, base_logits = run(nn, ask.base, ask.places, ask.options)
        clean = (base_logits if ask.base_is_clean else source_logits)[:, -1]
        base = measure(ask, ask.base, base_logits, clean)
        refused = refusal(base, ask.n)
        if refused:
            return refused
        control: dict[int, Tensor] = {}
        layers = []
        for where, own, other in zip(ask.places, ours, theirs, strict=True):
            layers.append(patch_layer(nn, ask, where, own, other, cells, clean, control))
            tick(len(parts) * len(ask.places) + len(layers), len(asks(payload)) * len(ask.places))
        parts.append(
            {
                "change": torch.stack(layers, 1).unflatten(-1, (-1, ask.units)).transpose(-1, -2),
                "base": base,
                "source": measure(ask, ask.source, source_logits, clean),
            }
        )
    return gather(parts)


def patch_layer(
    nn: Any,
    ask: SimpleNamespace,
    where: tuple[str, str],
    own: Tensor,
    other: Tensor,
    cells: list[tuple[int, int]],
    clean: Tensor,
    control: dict[int, Tensor],
) -> Tensor:
    """The change [example, cell] for every cell of one layer.

    ``control`` holds the unpatched metric for each number of rows: the same batch size gives the
    same rounding, which makes patching a run with itself exactly 0.
    """
    at_once = max(1, ask.rows // ask.n)
    changes = []
    for start in range(0, len(cells), at_once):
        some = cells[start : start + at_once]
        copies = len(some)
        if copies not in control:
            _, logits = run(nn, repeated(ask.base, copies), [], ask.options)
            control[copies] = measure(ask, ask.base, logits, clean, copies)
        logits = patched(nn, ask, where, own, other, cell_mask(some, ask.spots, ask.units))
        change = measure(ask, ask.base, logits, clean, copies) - control[copies]
        changes.append(change.view(copies, ask.n))
    return torch.cat(changes).T


def cell_mask(cells: list[tuple[int, int]], spots: Tensor, units: int) -> Tensor:
    """Where each cell lies: a mask [cell, example, pos, unit]."""
    unit = torch.eye(units, dtype=torch.bool)
    return torch.stack([spots[spot][..., None] & unit[one] for spot, one in cells])


def patched(
    nn: Any,
    ask: SimpleNamespace,
    where: tuple[str, str],
    own: Tensor,
    other: Tensor,
    chosen: Tensor,
) -> Tensor:
    """The logits [cell * example, pos, d_vocab] with each row's chosen cell taken from ``other``.

    Only what differs between the runs is written, so that a run patched with itself is left as it
    is to the last bit, whatever the batch size.
    """
    copies, _, width, units = chosen.shape
    with nn.trace(inputs(repeated(ask.base, copies)), **ask.options):
        with torch.no_grad():
            live = read(nn, where, width).unflatten(0, (copies, -1))
            differs = (other != own).unflatten(-1, (units, -1))
            mask = (chosen.to(other.device)[..., None] & differs).flatten(-2)
            write(nn, where, torch.where(mask, other, live).flatten(0, 1))
            logits = nn.output.logits
    return logits
