"""Provenance of a result: the same record for every method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from nnattr.backend import Cost
from nnattr.model.model import Model
from nnattr.results import Provenance
from nnattr.tasks import Task
from nnattr.tasks.file import packed


def record(
    model: Model,
    task: Task,
    *,
    method: str,
    arguments: Mapping[str, Any],
    metric: str,
    cost: Cost,
) -> Provenance:
    """What was asked of which model on which task, where, and what it cost."""
    return Provenance(
        method=method,
        arguments=dict(arguments),
        metric=metric,
        model=model.name,
        revision=model.revision,
        architecture=model.architecture,
        backend=model.backend.name,
        dtype=model.dtype,
        task=task.name,
        task_hash=task.hash,
        examples=packed(task),
        versions={name: version(name) for name in ("nnattr", "nnsight", "torch", "transformers")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **{key: round(value, 4) for key, value in asdict(cost).items()},
    )
