"""A study in as few jobs as its backend's limits allow, each kept on disk as soon as it is done.

Without limits a study is one job. A limit on a job's seconds or bytes, or a server that refuses a
job for its size, splits it by layers, never by cell. With a checkpoint every finished part is kept
(`nnattr.jobs.checkpoint`), so that the same study picks up where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch

from nnattr.backend import Cost
from nnattr.errors import ResultError, TooLargeError
from nnattr.jobs.checkpoint import Part, Store
from nnattr.jobs.frame import Frame
from nnattr.jobs.study import Study
from nnattr.results import Scores

Values: TypeAlias = dict[str, Any]

#: The largest relative difference of baselines between parts of one model.
SAME = 0.02


def run(study: Study, checkpoint: str | Path | None = None) -> Scores:
    """The answer to a study, computed where its model's backend says.

    Args:
        study: what is asked.
        checkpoint: a folder that keeps finished parts.

    Raises:
        BackendError, ResultError: see `in_parts`.
        MetricError, TaskError: see `nnattr.jobs.frame.Frame.scores`.
    """
    frame = study.frame()
    return frame.scores(*in_parts(study, frame, checkpoint))


def in_parts(study: Study, frame: Frame, checkpoint: str | Path | None) -> tuple[Values, Cost]:
    """The values of all layers, and what they cost now and when they were kept.

    Raises:
        BackendError: a job failed, and one of fewer layers would not help or failed as well. What
            was finished stays in the checkpoint.
        ResultError: the checkpoint cannot be written, or holds something else.
    """
    store = Store(checkpoint, study, frame) if checkpoint is not None else None
    parts = store.read() if store else {}
    backend = study.model.backend
    size = _first_size(study, frame, checkpoint is not None)
    while pending := _gap(parts, frame.layers):
        layers = pending[:size] if study.by_layer else pending
        try:
            payload, label = study.payload(layers), _label(study, layers)
            outcome = study.model.run(study.job, payload, label=label, said=frame.said)
        except TooLargeError:
            if not (study.by_layer and len(layers) > 1):
                raise
            size = len(layers) // 2
            continue
        frame.refuse(outcome.values, len(layers))
        parts[layers[0]] = Part(outcome.values, outcome.cost)
        if store:
            store.write(layers[0], parts[layers[0]])
        if backend.max_job_seconds is not None:
            seconds = outcome.cost.run_seconds or outcome.cost.seconds
            size = max(1, int(len(layers) * backend.max_job_seconds / max(seconds, 1e-3)))
            size = min(size, _byte_limit(study, frame))
    return _joined(parts, store)


def _joined(parts: dict[int, Part], store: Store | None) -> tuple[Values, Cost]:
    """The parts as one, if one model computed them all."""
    ordered = [parts[layer] for layer in sorted(parts)]
    values = dict(ordered[0].values)
    said = next((part.values for part in ordered if part.values.get("fell_back")), {})
    values |= {key: said[key] for key in ("engine", "fell_back") if key in said}
    for key in ("base", "source"):
        baselines = torch.stack([part.values[key].double() for part in ordered])
        gap = (baselines - baselines[0]).abs().max()
        if store and gap > SAME * baselines.abs().max():
            raise ResultError(
                f"The parts in {store.folder} do not belong together: the metric of the plain runs "
                "differs between them, so the model has changed. Delete them, or use another "
                "checkpoint."
            )
    values["change"] = torch.cat([part.values["change"] for part in ordered], 1)
    for key in ("peak", "rows"):
        values[key] = max(part.values.get(key, 0) for part in ordered)
    return values, sum((part.cost for part in ordered), Cost())


def _gap(parts: dict[int, Part], layers: int) -> list[int]:
    """The first run of layers that no part covers."""
    missing = set(range(layers))
    for first, part in parts.items():
        missing -= set(range(first, first + part.layers))
    run: list[int] = []
    for layer in sorted(missing):
        if run and layer != run[-1] + 1:
            break
        run.append(layer)
    return run


def _first_size(study: Study, frame: Frame, kept: bool) -> int:
    """Layers in the first job: one where its time must be measured or work here is to be kept."""
    backend = study.model.backend
    if backend.max_job_seconds is not None or (kept and backend.holds_weights):
        return 1
    return _byte_limit(study, frame)


def _byte_limit(study: Study, frame: Frame) -> int:
    """Layers whose scores fit the limit on a job's bytes; all where there is none."""
    limit = study.model.backend.max_job_bytes
    if limit is None:
        return frame.layers
    per_layer = 4 * len(frame.prompts) * frame.units * frame.cells
    return max(1, min(frame.layers, limit // per_layer))


def _label(study: Study, layers: list[int]) -> str:
    """What people and messages call the job: the method, and its layers where it can be split."""
    name = study.method.replace("_", " ")
    return f"{name}, layers {layers[0]}-{layers[-1]}" if study.by_layer else name
