"""Edges patched together and single paths, asked of the engine's jobs without a public call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnattr import LogitDiff, Model, Task
from nnattr.engine import chains_job, joint_edges_job
from nnattr.graph import Graph, Part
from nnattr.jobs.study import Study
from nnattr.jobs.wiring import plain, wiring


def joint(model: Model, task: Task, graph: Graph, sets: Tensor, **options: Any) -> dict[str, Any]:
    """What the job finds for sets of a graph's edges [set, sender, receiver]."""
    payload = {
        "senders": [plain(part) for part in graph.senders],
        "readers": [plain(part) for part in graph.receivers],
        "sets": sets,
    }
    return asked(joint_edges_job, model, task, payload, **options)


def along(model: Model, task: Task, paths: Sequence[Sequence[Part]], **options: Any) -> Any:
    """What the job finds for single paths."""
    payload = {"chains": [[plain(part) for part in path] for path in paths]}
    return asked(chains_job, model, task, payload, **options)


def asked(
    job: Any,
    model: Model,
    task: Task,
    payload: dict[str, Any],
    *,
    metric: Any = None,
    positions: Any = "all",
    direction: Any = "denoising",
    engine: str = "suffix",
    max_memory: int | None = None,
) -> dict[str, Any]:
    study = Study(
        job,
        "path_patching",
        False,
        model,
        task,
        metric or LogitDiff(),
        "z",
        positions,
        direction,
        False,
        engine,
        max_memory=max_memory,
    )
    payload = {**study.payload(), "wiring": wiring(model), **payload}
    values = model.run(job, payload, label="edges together").values
    return {**values, "change": values["change"][..., 0, 0]}


def some_edges(graph: Graph, share: float, seed: int = 0) -> Tensor:
    """A set of so many of a graph's edges [sender, receiver]."""
    drawn = torch.rand(graph.mask().shape, generator=torch.Generator().manual_seed(seed))
    return graph.mask() & (drawn < share)


def named(graph: Graph, edges: Tensor) -> list[tuple[str, str]]:
    """The edges of a set, as the oracle names them."""
    return [
        (str(graph.senders[row]), str(graph.receivers[column]))
        for row, column in edges.nonzero().tolist()
    ]
