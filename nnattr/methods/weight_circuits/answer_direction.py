r"""Which direction of the residual stream says the answer rather than the wrong answer?

A metric that is linear in the logits, :math:`m = \sum_v w_v \ell_v` (`nnattr.LogitDiff`: the answer
counts 1 and the wrong answer -1), reads behind the final norm along

.. math:: d = c \sum_v w_v W_U[:, v]

with the unembedding :math:`W_U` and the constant :math:`c` that some families multiply logits with.
So :math:`m = d \cdot \mathrm{norm}(x)` for the last residual stream :math:`x` at the last position,
and the difference of the unembedding's biases besides, where it has them (and before a cap of the
logits). **The final norm is not folded in**: neither its weights nor its scale, which differs from
run to run. `nnattr.direct_logit_attribution` takes it into account for you.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import checked
from nnattr.maps.linear import linear_map
from nnattr.metrics import LogitDiff, Metric, direction
from nnattr.model.components import logit_constants
from nnattr.model.model import Model
from nnattr.model.prompts import fits
from nnattr.model.sites import place
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.places import read
from nnattr.runs.portions import answered
from nnattr.tasks import Task


@checked
def answer_direction(model: Model, task: Task, metric: Metric | None = None) -> xr.DataArray:
    """The direction behind the final norm along which each example's metric is read.

    Args:
        model: as `nnattr.load` gives it.
        task: its answers and wrong answers count; groups with the mean of their words.
        metric: a linear one; by default `nnattr.LogitDiff`.

    Returns:
        float32 with the dimensions ``example`` and ``d_model``.

    Raises:
        MetricError: the metric is not linear, or needs what the task lacks.
        TaskError: the task was made for another tokenizer.

    Cost: a forward pass of one prompt, and the unembedding's columns of these words.
    """
    fits(model, task)
    weights = direction(LogitDiff() if metric is None else metric, task)
    words = max(map(len, weights))
    tokens = [[*row, *[0] * (words - len(row))] for row in weights]
    counts = [[*row.values(), *[0.0] * (words - len(row))] for row in weights]
    end = place(model.spec, "resid_post", model.n_layers - 1)
    payload = {
        "prompts": {name: value[:1] for name, value in task.clean_tokens.tensors.items()},
        "final": (end.path, end.side, None),
        "unembed": model.spec.unembed,
        "tokens": torch.tensor(tokens),
        "weights": torch.tensor(counts) * logit_constants(model)[0],
    }
    model = replace(model, edits=())  # they leave the unembedding as it is
    values = model.run(answer_direction_job, payload, label="answer direction").values
    found = values["direction"].numpy()
    coords = {"example": np.arange(len(found))}
    return xr.DataArray(found, dims=("example", "d_model"), coords=coords)


def answer_direction_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """``direction`` [example, d_model], made of the unembedding as the module computes it."""
    prompts = PromptBatch(**payload["prompts"])
    where, unembed = payload["final"], payload["unembed"]
    return answered(directions, nn, prompts, where, unembed, payload["tokens"], payload["weights"])


def directions(
    nn: Any,
    prompts: PromptBatch,
    where: tuple[Any, ...],
    unembed: str,
    tokens: Tensor,
    weights: Tensor,
) -> dict[str, Tensor]:
    """Sums of the unembedding's columns of ``tokens`` by ``weights`` [example, word]."""
    with nn.trace(**inputs(prompts)):
        with torch.no_grad():
            like = read(nn, where, prompts.width)
            with torch.autocast(like.device.type, enabled=False):
                words, which = tokens.to(like.device).unique(return_inverse=True)
                columns, _ = linear_map(nn.get(unembed), like.shape[-1], like, words)
                found = (columns.T[which] * weights.to(like.device)[..., None]).sum(-2)
    return {"direction": found.clone().cpu()}
