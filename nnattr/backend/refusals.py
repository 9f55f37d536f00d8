"""What is raised for a job that refuses: it returns ``{"refused": (kind, reason)}`` for an answer.

A job refuses by raising `nnattr.runs.portions.RefusedError`, wherever it runs.
"""

from __future__ import annotations

from typing import Any

from nnattr.errors import ArchError, BackendError, MetricError, NnattrError

#: The error for each kind of refusal.
REFUSALS: dict[str, type[NnattrError]] = {
    "arch": ArchError,
    "backend": BackendError,
    "metric": MetricError,
}


def accepted(values: dict[str, Any], said: str) -> dict[str, Any]:
    """What a job returned, unless it refused.

    Args:
        values: what came back.
        said: how the message begins: what was asked, and of which model.

    Raises:
        ArchError: the model is not what was asked for.
        BackendError: the place where it runs cannot do it.
        MetricError: the metric has no usable value.
    """
    if "refused" not in values:
        return values
    kind, reason = values["refused"]
    raise REFUSALS.get(kind, BackendError)(f"{said}: {reason}")
