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

from collections.abc import Sequence

from nnattr.arguments import Folder, Positive, checked
from nnattr.engine import attribution_job
from nnattr.jobs import split
from nnattr.jobs.estimating import Estimating, EstimatorName, Points, RuleName, Way
from nnattr.jobs.layout import PatchSite
from nnattr.jobs.study import Direction, Study
from nnattr.metrics import Metric
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
        estimating=Estimating(estimator, rules, temperature, steps, points, along),
    )
    return split.run(study, checkpoint)
