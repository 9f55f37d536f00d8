r"""Attribution patching: activation patching of every cell at once, to first order.

The base run is differentiated with respect to the activations of the site:

.. math:: \widehat{\Delta m}(c) = (a_c^{source} - a_c^{base}) \cdot
          \left.\frac{\partial m}{\partial a_c}\right|_{base}

an estimate of what activation patching measures in the same direction, with the same sign. Two
forward passes and one backward pass, whatever the number of cells.

It misleads where the model is not close to linear between the runs: large activations (the residual
stream of early layers), saturated softmaxes and norms, and metrics that are flat at the base run
(probabilities near 0 or 1, KL at the clean run). MLP outputs of GPT-2 small correlate poorly with
the exact effects. Check the cells you rely on with `activation_patching`. (Nanda 2023; Syed et al.
2023, arXiv:2310.10348; Kramár et al. 2024, arXiv:2403.00745.)
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.backend import Tick
from nnattr.methods.study import Direction, Study
from nnattr.metrics import Metric
from nnattr.model.caches import fork, prefix, resumable
from nnattr.model.gathered import gathered
from nnattr.model.layout import PatchSite
from nnattr.model.memory import portions
from nnattr.model.model import Model
from nnattr.model.runs import inputs, logits_of, measure, observe, refusal
from nnattr.model.sites import cut, read
from nnattr.results import Scores
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions


def attribution_patching(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    site: PatchSite = "z",
    positions: Positions = "all",
    direction: Direction = "denoising",
    normalized: bool = True,
    checkpoint: str | Path | None = None,
    max_memory: int | None = None,
) -> Scores:
    """A first-order estimate of `activation_patching` for every cell of a site, in one job.

    Arguments, result and errors are those of `activation_patching`, so that the two swap in place.

    Raises:
        BackendError: as there, and where the deployment cannot give gradients (a sandboxed NDIF);
            the exact method works there.

    Cost: two forward passes and one backward pass over the examples, in chunks; the backward pass
    goes through activations only, not weights.
    """
    study = Study(
        attribution_job,
        "attribution_patching",
        False,
        model,
        task,
        metric,
        site,
        positions,
        direction,
        normalized,
        max_memory=max_memory,
    )
    return study.run(checkpoint)


def attribution_job(nn: Any, tick: Tick, **payload: Any) -> dict[str, Any]:
    """Both baselines and the estimated change for every cell."""
    return portions(nn, tick, payload, attribute)


def attribute(nn: Any, tick: Tick, ask: SimpleNamespace) -> dict[str, Any]:
    """Both baselines and the estimated change for every cell of one chunk of examples.

    Only the positions from the first one at which the runs differ are differentiated: before it
    there is no difference to multiply a gradient with. The source run has a pass of its own: in one
    batch with the base run the backward pass would go through its rows as well, for nothing.
    """
    start = resumable(nn, ask)
    cache, before = prefix(nn, ask, start)
    every = [torch.arange(ask.n)] * len(ask.layer_paths)
    theirs, source_logits = observe(nn, ask, ask.source, ("site",), start, fork(cache, every))
    with nn.trace(**inputs(ask, ask.base, start, fork(cache, every))):
        nn.get(ask.embed).output.requires_grad_(True)  # opens the graph: the weights are frozen
        # of a part of an output there is no gradient: take it of the whole, and cut
        width = ask.base["ids"].shape[1] - start
        live = [read(nn, (path, side, None), width) for path, side, _ in ask.places]
        parts = [part for *_, part in ask.places]
        ours = [cut(value.detach(), part).clone() for value, part in zip(live, parts, strict=True)]
        logits = logits_of(nn, ask)
        # a sandbox, which has no weights, gives copies that lead nowhere
        tracked = logits.grad_fn is not None and not nn.get(ask.embed).weight.is_meta
        if before is not None:
            logits = torch.cat([before, logits], 1)
            source_logits = torch.cat([before, source_logits], 1)
        clean = (logits.detach() if ask.base_is_clean else source_logits)[:, -1]
        base = measure(ask, ask.base, logits, clean)
        refused = refusal(base, ask.n)
        slopes = ()
        if tracked and not refused and base.requires_grad:
            slopes = torch.autograd.grad(base.sum(), live)
    if refused:
        return refused
    if not tracked:
        reason = "this deployment gives no gradients; use activation_patching, which needs none"
        return {"refused": ("backend", reason)}
    if not slopes:
        reason = "it has no gradient; use activation_patching, which needs none"
        return {"refused": ("metric", reason)}
    others = gathered(nn, ask, ours, start) if ask.patterns else theirs["site"]
    if isinstance(others, dict):
        return others
    tick(1, 1)
    ask.room.rows = max(ask.room.rows, ask.n)
    spots = ask.spots[:, :, start:]
    change = [
        contribution(cut(slope, part), other, own, spots, ask.units).cpu()
        for slope, part, other, own in zip(slopes, parts, others, ours, strict=True)
    ]
    return {
        "change": torch.stack(change, 1),
        "base": base.detach(),
        "source": measure(ask, ask.source, source_logits, clean),
        "engine": "suffix" if start else "full",
        "dtype": str(logits.dtype),
    }


def contribution(slope: Tensor, other: Tensor, own: Tensor, spots: Tensor, units: int) -> Tensor:
    """First-order change [example, unit, cell] of one layer, in float32."""
    moved = (slope.float() * (other.float() - own.float())).unflatten(-1, (units, -1)).sum(-1)
    where = spots.to(moved.device).float()
    return (moved[None] * where[..., None]).sum(2).permute(1, 2, 0)
