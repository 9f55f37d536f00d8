r"""Next-token attribution: which parts of the model write the token that really comes next?

As `direct_logit_attribution`, with a direction of its own at every position: the row of the
unembedding that belongs to the text's own next token.

.. math:: \ell_p(t_{p+1}) = \sum_c \langle W_U[t_{p+1}], \mathrm{norm}_{x_p}(x_{c,p}) \rangle + b

The parts are the direct path (the embeddings), every head, the MLPs and the biases; they add up to
the logit, which is measured in every run.

It misleads as every direct attribution does (see `direct_logit_attribution`), and in one more way:
a logit by itself says little. The softmax does not see what raises all logits alike, so a part with
large values everywhere may do nothing for the prediction; compare parts across positions, first
copy against second, rather than reading one number.

Source: the logit attribution of ARENA's "Intro to Mechanistic Interpretability", after Elhage et
al. 2021. The cost is one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import checked
from nnattr.errors import TaskError
from nnattr.jobs.record import as_task, provenance_of, untold
from nnattr.methods.direct.decomposition import decomposition, placed, shares
from nnattr.methods.direct.decomposition_job import decomposition_job
from nnattr.model.components import chosen_layers, components
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, texts_and_tokens
from nnattr.results import Scores
from nnattr.tasks import Task
from nnattr.tasks.positions import spots

METRIC = "logit of the next token"


@checked
def next_token_attribution(
    model: Model,
    prompts: Prompts,
    *,
    unit: Literal["head", "component", "neuron"] = "head",
    layers: Sequence[int] | None = None,
) -> Scores:
    """What each part of the model writes toward the next token of the text, at every position.

    Args:
        model: as `nnattr.load` gives it.
        prompts: texts of at least two tokens, a task, whose clean prompts are read, or tokens.
        unit: the parts; ``"head"``, ``"component"`` or ``"neuron"``, as in
            `direct_logit_attribution`.
        layers: for heads and neurons the layers to split; by default all.

    Returns:
        scores with the dimensions (example, layer, head, pos), (example, component, pos) or
        (example, layer, neuron, pos), for every position that has a next token; NaN on padding.
        ``scores.rest`` holds the other parts (the direct path ``embed``, MLPs, biases), so that
        cells and rest add up to the logit. The baseline is the mean logit over the prompt.
        ``nnattr.plots.parts(scores)`` shows all of it, part by part.

    Raises:
        TaskError: an unknown unit, or texts that are too short or too long.
        ArchError: the model is not a sum of such parts, with what was measured.
        MetricError: logits that are not finite.
    """
    task = _task(model, prompts)
    wanted = chosen_layers(model, unit, layers)
    plan = components(model, unit, wanted)
    chosen = _positions(task)
    payload = decomposition(model, task, plan, chosen, _next(task), unit)
    payload |= {"run": model.batch(task.clean_tokens, prompts), "other": None}
    said = f"{METRIC} on {model.name} ({model.architecture})"
    outcome = model.run(decomposition_job, payload, label="next-token attribution", said=said)
    made = provenance_of(
        model,
        task,
        method="next_token_attribution",
        arguments={
            "unit": unit,
            "positions": "each",
            "layers": layers,
            **untold(prompts),
        },
        metric=METRIC,
        outcome=outcome,
    )
    raw, rest = (
        None if one is None else placed(one, chosen, task, "each").isel(pos=slice(0, -1))
        for one in shares(model, plan, outcome.values, wanted, unit)
    )
    assert raw is not None
    whole = _baselines(outcome.values["whole"], chosen)
    return Scores.from_arrays(raw, whole, 1.0, made, rest=rest)


def _task(model: Model, prompts: Prompts) -> Task:
    """The prompts alone: nothing of a corrupted run is looked at, nor named in figures.

    An answer that stands behind a prompt is read as a part of it.
    """
    task = as_task(prompts, *texts_and_tokens(model, prompts))
    return replace(task, corrupted=(), twin_tokens=None, sequence_ids=())


def _positions(task: Task) -> Tensor:
    """Every position with a next token as a cell [cell, example, pos]."""
    lengths = task.clean_tokens.mask.sum(1)
    if int(lengths.min()) < 2:
        raise TaskError(
            f"The prompt {task.clean[int(lengths.argmin())]!r} is one token long; it needs a next "
            "token."
        )
    return spots(task, "each") & (torch.arange(task.width) < task.width - 1)


def _next(task: Task) -> tuple[Tensor, Tensor]:
    """At every position the token after it, and 1; at the last one nothing."""
    following = task.clean_tokens.ids.roll(-1, 1)
    weights = torch.ones(following.shape, dtype=torch.float32)
    weights[:, -1] = 0
    return following[..., None], weights[..., None]


def _baselines(logits: Tensor, chosen: Tensor) -> xr.DataArray:
    """The mean logit of each prompt's next tokens; there is no corrupted run."""
    there = chosen.any(-1).T  # [example, pos]
    mean = (logits[:, 0] * there).sum(-1) / there.sum(-1)
    both = torch.stack([mean, torch.full_like(mean, float("nan"))])
    return xr.DataArray(
        both.double().numpy(),
        dims=("run", "example"),
        coords={"run": ["clean", "corrupted"], "example": np.arange(len(mean))},
    )
