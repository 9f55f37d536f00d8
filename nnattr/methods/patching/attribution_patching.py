r"""Attribution patching: activation patching of every cell at once, to first order.

The base run is differentiated with respect to the activations of the site:

.. math:: \widehat{\Delta m}(c) = (a_c^{source} - a_c^{base}) \cdot
          \left.\frac{\partial m}{\partial a_c}\right|_{base}

an estimate of what activation patching measures in the same direction, with the same sign. Two
forward passes and one backward pass, whatever the number of cells. Other estimators take another
gradient in its place (`nnattr.engine.estimators`).

It misleads where the model is not close to linear between the runs: large activations (the residual
stream of early layers), saturated softmaxes and norms, and metrics that are flat at the base run
(probabilities near 0 or 1, KL at the clean run). MLP outputs of GPT-2 small correlate poorly with
the exact effects. Check the cells you rely on exactly:
``activation_patching(..., cells=estimate.top(20))``. (Nanda 2023; Syed et al.
2023, arXiv:2310.10348; Kramár et al. 2024, arXiv:2403.00745.)
"""

from __future__ import annotations

from collections.abc import Sequence

from nnattr.arguments import Folder, Positive, checked
from nnattr.engine import attribution_job
from nnattr.jobs import split
from nnattr.jobs.asked import Cells, Layers, asked_cells
from nnattr.jobs.estimating import Estimating, EstimatorName, Points, RuleName, Way
from nnattr.jobs.layout import PatchSite
from nnattr.jobs.study import Direction, Study
from nnattr.metrics import Metric
from nnattr.model.heads import Head
from nnattr.model.model import Model
from nnattr.results import Scores
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions


@checked
def attribution_patching(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    site: PatchSite = "z",
    positions: Positions = "all",
    cells: Cells | None = None,
    layers: Layers | None = None,
    heads: Head | Sequence[Head] | None = None,
    direction: Direction = "denoising",
    normalized: bool = True,
    estimator: EstimatorName = "gradient",
    rules: Sequence[RuleName] | None = None,
    temperature: float | None = None,
    steps: Positive | None = None,
    points: Points | None = None,
    along: Way | None = None,
    checkpoint: Folder | None = None,
    max_memory: Positive | None = None,
) -> Scores:
    """An estimate of `activation_patching` for every cell of a site, in one job.

    Other arguments, result and errors are those of `activation_patching`, so that the two swap in
    place. Only ``together`` it has not: the effect of several cells at once is not the sum of their
    estimates, which count the paths from one through another for both.

    Args:
        model: from `load`.
        task: clean and corrupted prompts, encoded for this model.
        metric: ``LogitDiff()`` and the like, or a function ``(logits, batch) -> [example]``.
        site: which activation.
        positions: where.
        cells: a few cells alone; these, ``layers`` and ``heads`` save little here, as all cells of
            a layer cost what one does.
        layers: some layers alone.
        heads: some heads alone.
        direction: which run is patched into.
        normalized: divide by the task's mean gap between the runs.
        estimator: ``"gradient"`` at the base run. With rules of the backward pass: ``"half"`` gives
            each factor of a gated product half of its gradient; ``"relp"`` besides holds norms'
            scales, and takes activations as their input times a number; ``"gim"`` takes a softer
            softmax, and halves in attention as well. ``"integrated"`` takes the mean gradient on
            the way between the runs. ``"atp*"`` gives magnitudes: means over passes that drop a
            layer each, with q and k through their softmax.
        rules: of the backward pass, in the place of those of ``"half"``, ``"relp"`` or ``"gim"``.
        temperature: of the softmax of ``"gim"``; 2 by default.
        steps: into how many parts ``"integrated"`` divides the way; 10 by default.
        points: which points of these parts it uses; their middles by default.
        along: what goes that way: the ``"inputs"`` (by default), or the ``"activations"`` of one
            layer at a time.
        checkpoint: a folder for what is found.
        max_memory: bytes to plan with besides the weights, where the job runs.

    Returns:
        scores as those of `activation_patching`; with ``"integrated"`` they have a ``completeness``
        error. Provenance names the rules that acted, and the points.

    Raises:
        ArgumentError: a setting of another estimator.
        ArchError: as there, and a rule that would change nothing in this model, or that cannot be
            placed in it, by its name.
        BackendError: as there, and where the deployment cannot give gradients (a sandboxed NDIF);
            the exact method works there.

    Cost: two forward passes and one backward pass over the examples, in chunks; the backward pass
    goes through activations only, not weights. ``"integrated"``: a forward and a backward pass for
    each step, and along activations for each layer; ``"atp*"``: about half as many backward passes
    as there are layers, through one run. Rules: one run of a single example to show that they act.
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
        asked=asked_cells(model, task, site, positions, cells=cells, layers=layers, heads=heads),
        estimating=Estimating(estimator, rules, temperature, steps, points, along),
    )
    return split.run(study, checkpoint)
