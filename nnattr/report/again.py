"""The file that reproduces a result: from `Scores` back to the `RunConfig` of ``nnattr run``."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from nnattr.calls.plain import metric_call
from nnattr.config import RunConfig
from nnattr.errors import NnattrError
from nnattr.methods.activation_patching import activation_patching
from nnattr.methods.attribution_patching import attribution_patching
from nnattr.methods.direct.direct_logit_attribution import direct_logit_attribution
from nnattr.results import Provenance, Scores

#: The methods that a run file can name.
METHODS: dict[str, Callable[..., Scores]] = {
    "activation_patching": activation_patching,
    "attribution_patching": attribution_patching,
    "direct_logit_attribution": direct_logit_attribution,
}


def again(scores: Scores, path: str) -> RunConfig:
    """The file with which ``nnattr run`` makes the scores again.

    Args:
        scores: any that a method of a file made.
        path: where they are saved: their task is read from there.

    Raises:
        NnattrError: no file can say it: the method or the metric is not one that a file can name,
            or the scores do not hold their task.
    """
    p = scores.provenance
    if p.method not in METHODS:
        raise NnattrError(f"`nnattr run` does not know the method {p.method}.")
    if p.examples is None:
        raise NnattrError(f"The scores do not hold their task, {p.task}.")
    metric, metric_arguments = metric_call(p.metric)
    known = inspect.signature(METHODS[p.method]).parameters
    given = {key: value for key, value in p.arguments.items() if key in known and value is not None}
    fields = {key: given.pop(key) for key in list(given) if key in RunConfig.model_fields}
    return RunConfig.model_validate(
        {
            "model": p.model,
            "revision": p.revision,
            "backend": backend_of(p),
            "dtype": p.dtype.removeprefix("torch."),
            "task": {"file": path},
            "method": p.method,
            "metric": metric,
            "metric_arguments": metric_arguments,
            "options": given,
            **fields,
        }
    )


def backend_of(provenance: Provenance) -> str:
    """The backend as ``load`` takes it: ``ndif (http://host)`` is the address alone."""
    return provenance.backend.partition(" (")[2].rstrip(")") or provenance.backend
