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

from typing import Any

import torch
from torch import Tensor

from nnattr.backend import Tick
from nnattr.methods.positions import Positions
from nnattr.methods.study import Direction, Study
from nnattr.metrics import Metric
from nnattr.model.runs import batch_of, examples, inputs, run, wrong_shape
from nnattr.model.sites import SiteName, read
from nnattr.model.view import Model
from nnattr.results import Scores
from nnattr.tasks import Task


def attribution_patching(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    site: SiteName = "z",
    positions: Positions = "all",
    direction: Direction = "denoising",
    normalized: bool = True,
) -> Scores:
    """A first-order estimate of `activation_patching` for every cell of a site, in one job.

    Arguments, result and errors are those of `activation_patching`, so that the two swap in place.

    Raises:
        BackendError: as there, and where the deployment cannot give gradients (a sandboxed NDIF);
            the exact method works there.

    Cost: two forward passes and one backward pass over the examples, in chunks; the backward pass
    goes through activations only, not weights.
    """
    study = Study(model, task, metric, site, positions, direction, normalized)
    return study.ask(attribution_job, "attribution_patching", embed=model.spec.embed)


def attribution_job(nn: Any, tick: Tick, **payload: Any) -> dict[str, Any]:
    """Estimate every cell, a chunk of examples at a time."""
    n, step = payload["base"]["ids"].shape[0], payload["rows"]
    parts: list[dict[str, Any]] = []
    for start in range(0, n, step):
        part = attribute_examples(nn, start, start + step, **payload)
        if "refused" in part:
            return part
        parts.append(part)
        tick(len(parts), -(-n // step))
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def attribute_examples(
    nn: Any,
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
    embed: str,
    rows: int,
) -> dict[str, Any]:
    """Both baselines and the estimated change for every cell of some examples.

    The source run has a trace of its own, in the same session: in one batch with the base run the
    backward pass would go through its rows as well, for nothing.
    """
    base, source = examples(base, start, stop), examples(source, start, stop)
    answers, spots = examples(answers, start, stop), spots[:, start:stop]
    n = base["ids"].shape[0]
    theirs, source_logits = run(nn, source, places, options)
    with nn.trace(inputs(base), **options):
        nn.get(embed).output.requires_grad_(True)  # opens the graph: the weights are frozen
        live = [read(nn, where) for where in places]
        ours = [value.detach().clone() for value in live]
        logits = nn.output.logits
        tracked = logits.grad_fn is not None
        clean = (logits.detach() if base_is_clean else source_logits)[:, -1]
        value = metric(logits, batch_of(answers, base, clean))
        refusal = wrong_shape(value, n)
        if tracked and not refusal:
            slopes = torch.autograd.grad(value.sum(), live)
    if refusal:
        return {"refused": ("metric", refusal)}
    if not tracked:
        reason = "this deployment gives no gradients; use activation_patching, which needs none"
        return {"refused": ("backend", reason)}
    change = [
        contribution(slope, other, own, spots, units)
        for slope, other, own in zip(slopes, theirs, ours, strict=True)
    ]
    return {
        "change": torch.stack([one.cpu() for one in change], 1),
        "base": value.detach(),
        "source": metric(source_logits, batch_of(answers, source, clean)),
    }


def contribution(slope: Tensor, other: Tensor, own: Tensor, spots: Tensor, units: int) -> Tensor:
    """First-order change [example, unit, cell] of one layer, in float32."""
    moved = (slope.float() * (other.float() - own.float())).unflatten(-1, (units, -1)).sum(-1)
    where = spots.to(moved.device).float()
    return (moved[None] * where[..., None]).sum(2).permute(1, 2, 0)
