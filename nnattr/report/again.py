"""The run file that reproduces a result: from `Scores` back to a `RunConfig`."""

from __future__ import annotations

from typing import get_args

from nnattr.calls.plain import metric_call
from nnattr.calls.registry import METHODS
from nnattr.config import RunConfig
from nnattr.errors import NnattrError
from nnattr.results import Provenance, Scores

#: The methods that a run file can name.
NAMED = get_args(RunConfig.model_fields["method"].annotation)


def again(scores: Scores, path: str) -> RunConfig:
    """The run file that reproduces these scores.

    Args:
        scores: what a method that a run file can name returned.
        path: where they are saved; the file reads their task from there.

    Raises:
        NnattrError: a run file cannot name the method or the metric, or the scores do not hold
            their task.
    """
    p = scores.provenance
    if p.method not in NAMED:
        raise NnattrError(
            f"A run file cannot name the method {p.method}; it can name {', '.join(NAMED)}."
        )
    if p.examples is None:
        raise NnattrError(f"The scores do not hold their task, {p.task}; make it again first.")
    metric, metric_arguments = metric_call(p.metric)
    known = METHODS[p.method].arguments
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
