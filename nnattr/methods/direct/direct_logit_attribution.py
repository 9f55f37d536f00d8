r"""Direct logit attribution: how much each part of the model writes toward the answer.

The final residual stream is a sum of parts, :math:`x = \sum_c x_c`: the embedding, and what every
attention and MLP layer added. A linear metric reads it along a direction, for the logit difference
the difference of two rows of the unembedding. With the final norm's scale frozen at the run's own
value the norm is linear as well, so the metric falls apart into shares:

.. math:: m = \sum_a w_a \ell_a = \sum_c \langle u, \mathrm{norm}_x(x_c) \rangle + b,
          \qquad u = \sum_a w_a W_U[a]

They add up to the whole, which is measured in every run. Attention falls apart further into its
heads, :math:`z_h W_O^h`, and the MLP into its neurons.

It misleads as a story about causes. A part's share says what it writes toward the answer
*directly*: what later layers make of it is not in it, so a head that matters by moving information
has a share near zero, and one whose writing is undone later has a large one. The frozen scale hides
that every part also changes the scale. Early parts are read in the basis of the last layer, which
need not be theirs. `activation_patching` measures effects instead.

Source: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits); Wang et al. 2022
(arXiv:2211.00593); the logit lens of nostalgebraist 2020. The cost is one forward pass of each run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import checked
from nnattr.backend import Outcome
from nnattr.errors import TaskError
from nnattr.jobs.record import provenance_of
from nnattr.methods.direct.decomposition import Norm, Run, decomposition, placed, shares
from nnattr.methods.direct.decomposition_job import decomposition_job
from nnattr.metrics import LogitDiff, Metric, describe, direction
from nnattr.model.components import Unit, chosen_layers, components, points
from nnattr.model.model import Model
from nnattr.model.prompts import fits
from nnattr.results import Scores
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions, spots


@checked
def direct_logit_attribution(
    model: Model,
    task: Task,
    metric: Metric | None = None,
    *,
    unit: Unit = "component",
    positions: Positions = "last",
    norm: Norm = "frozen",
    layers: Sequence[int] | None = None,
    run: Run = "clean",
) -> Scores:
    """What each part of the model writes directly toward the answer, in logits.

    Args:
        model: as `nnattr.load` gives it.
        task: prompts with answers; one run of it is taken apart, so it needs no corrupted prompts
            (``Task.from_prompts``).
        metric: a linear metric, by default ``LogitDiff()``.
        unit: the parts. ``"component"``: embedding, each attention and MLP layer, biases;
            ``"head"``: each head's z through the output projection; ``"neuron"``: each neuron
            through the down-projection; ``"accumulated"``: no parts, but what the metric would be
            if the model ended there, before and in the middle of each layer (the logit lens on the
            answer's direction).
        positions: where the direction is read: ``"last"``, or as in `nnattr.tasks.positions`; a
            cell of several positions is their mean.
        norm: ``"frozen"``, the final norm with the run's own scale, or ``"each"``, every part (or
            point) normed by itself, as the logit lens does; then parts do not add up.
        layers: for heads and neurons the layers to split; by default all.
        run: the run to take apart.

    Returns:
        scores with the dimensions (example, component), (example, layer, head) or (example, layer,
        neuron), and pos for ``positions="each"``. ``scores.rest`` holds what is not in the cells:
        for heads the embedding, the MLPs, attention's output biases, and so on. The biases of the
        final norm and the unembedding are the component ``bias``; where the model caps its logits,
        the cap's effect is ``softcap`` (for ``"accumulated"``, the metric behind the cap). Cells
        and rest add up to the metric (``norm="frozen"``).

    Raises:
        MetricError: the metric is not linear, or not finite on this run.
        ArchError: the model is not a sum of such parts, with what was measured, or has no neurons
            of this kind.
        TaskError: an unknown option, or a task made for another tokenizer.

    Cost: one forward pass of each run. Neurons are many: choose ``layers``.
    """
    metric = LogitDiff() if metric is None else metric
    _check_options(unit, norm)
    fits(model, task)
    weights = direction(metric, task)
    wanted = chosen_layers(model, unit, layers)
    plan = points(model) if unit == "accumulated" else components(model, unit, wanted)
    chosen = spots(task, positions)
    payload = decomposition(model, task, plan, chosen, _words(weights), unit, norm, run)
    said = f"{describe(metric)} on {model.name} ({model.architecture})"
    outcome = model.run(decomposition_job, payload, label="direct logit attribution", said=said)
    arguments = {
        "unit": unit,
        "positions": positions,
        "norm": norm,
        "layers": layers,
        "run": run,
    }
    made = provenance_of(
        model,
        task,
        method="direct_logit_attribution",
        arguments=arguments,
        metric=describe(metric),
        outcome=outcome,
    )
    raw, rest = shares(model, plan, outcome.values, wanted, unit)
    raw, rest = (placed(one, chosen, task, positions) for one in (raw, rest))
    return Scores.from_arrays(raw, _baselines(outcome, run), 1.0, made, rest=rest)


def _check_options(unit: str, norm: str) -> None:
    if unit == "neuron" and norm == "each":
        raise TaskError(
            "norm='each' means nothing for neurons: the norm would take away how active a neuron "
            "is, and leave its output weights alone. Use norm='frozen'."
        )


def _words(weights: Sequence[dict[int, float]]) -> tuple[Tensor, Tensor]:
    """The direction's tokens and weights [example, 1, word], filled up where there are fewer."""
    width = max(map(len, weights))
    tokens = [[*row, *[0] * (width - len(row))] for row in weights]
    shares = [[*row.values(), *[0.0] * (width - len(row))] for row in weights]
    return torch.tensor(tokens)[:, None], torch.tensor(shares, dtype=torch.float32)[:, None]


def _baselines(outcome: Outcome, run: Run) -> xr.DataArray:
    """The metric of both runs; NaN for the corrupted one where the task has none."""
    here = outcome.values["run"]
    there = outcome.values.get("other", torch.full_like(here, float("nan")))
    both = torch.stack([here, there] if run == "clean" else [there, here])
    return xr.DataArray(
        both.double().numpy(),
        dims=("run", "example"),
        coords={"run": ["clean", "corrupted"], "example": np.arange(both.shape[1])},
    )
