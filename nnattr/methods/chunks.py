"""A study in as few jobs as its backend's limits allow, each kept on disk as soon as it is done.

Without limits a study is one job. A limit on a job's seconds or bytes, or a server that refuses a
job for its size, splits it by layers, never by cell. With a checkpoint every finished part is a
file in a folder named by a digest of everything that the numbers depend on, so that the same study
picks up where it stopped and another one never takes its numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nnattr.backend import Cost
from nnattr.errors import BackendError, ResultError
from nnattr.methods.frame import Frame
from nnattr.metrics import describe

if TYPE_CHECKING:
    from nnattr.methods.study import Study

Values = dict[str, Any]

#: What a failure says when a smaller job may pass.
TOO_MUCH = ("out of memory", "too large", "timed out", "time limit", "took too long", "exceeded")


def in_chunks(study: Study, frame: Frame, checkpoint: str | Path | None) -> tuple[Values, Cost]:
    """The values of all layers, and what they cost now and when they were kept.

    Raises:
        BackendError: a job failed, and one of fewer layers would not help or failed as well. What
            was finished stays in the checkpoint.
        ResultError: the checkpoint cannot be written, or holds something else.
    """
    store = Store(checkpoint, study) if checkpoint is not None else None
    parts = store.read() if store else {}
    backend = study.model.backend
    size = _first_size(study, frame, checkpoint is not None)
    while pending := _gap(parts, frame.layers):
        layers = pending[:size] if study.by_layer else pending
        try:
            outcome = study.model.run(
                study.job, study.payload(layers), label=_label(study, layers, frame.layers))
        except BackendError as error:
            if not (study.by_layer and len(layers) > 1 and _too_much(error)):
                raise
            size = len(layers) // 2
            continue
        frame.refuse(outcome.values)
        parts[layers[0]] = (outcome.values, outcome.cost)
        if store:
            store.write(layers[0], outcome.values, outcome.cost)
        seconds = outcome.cost.run_seconds or outcome.cost.seconds
        if backend.max_job_seconds is not None:
            size = max(1, int(len(layers) * backend.max_job_seconds / max(seconds, 1e-3)))
            size = min(size, _byte_limit(study, frame))
    return _joined(parts)


def _joined(parts: dict[int, tuple[Values, Cost]]) -> tuple[Values, Cost]:
    ordered = [parts[layer] for layer in sorted(parts)]
    values = dict(ordered[0][0])
    values["change"] = torch.cat([part["change"] for part, _ in ordered], 1)
    return values, sum((cost for _, cost in ordered), Cost())


def _gap(parts: dict[int, tuple[Values, Cost]], layers: int) -> list[int]:
    """The first run of layers that no part covers."""
    missing = set(range(layers))
    for first, (values, _) in parts.items():
        missing -= set(range(first, first + values["change"].shape[1]))
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


def _too_much(error: BackendError) -> bool:
    said = f"{error} {error.__cause__}".lower()
    return any(mark in said for mark in TOO_MUCH)


def _label(study: Study, layers: list[int], total: int) -> str:
    name = study.method.replace("_", " ")
    return name if len(layers) == total else f"{name}, layers {layers[0]}-{layers[-1]}"


class Store:
    """Finished parts of one study in a folder.

    Args:
        folder: where; made if needed. Parts of several studies may share it.
        study: whose parts; a digest of its content names its own folder.
    """

    def __init__(self, folder: str | Path, study: Study) -> None:
        self.folder = Path(folder) / digest(study)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(f"The checkpoint {str(folder)!r} is no writable folder.") from error

    def read(self) -> dict[int, tuple[Values, Cost]]:
        """The parts that are there, by their first layer; incomplete files do not count."""
        from safetensors import SafetensorError, safe_open

        parts: dict[int, tuple[Values, Cost]] = {}
        for path in sorted(self.folder.glob("layer-*.safetensors")):
            try:
                with safe_open(str(path), framework="pt") as file:
                    values: Values = {
                        key: file.get_tensor(key) for key in ("change", "base", "source")
                    }
                    header = json.loads(file.metadata()["nnattr"])
                    values |= header["plain"]
                    cost = Cost(**header["cost"])
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise ResultError(
                    f"{path} is not a finished part of this study; delete it to compute it again."
                ) from error
            parts[int(path.stem.split("-")[1])] = (values, cost)
        return parts

    def write(self, layer: int, values: Values, cost: Cost) -> None:
        """Keep a part: a whole file appears at once, or none."""
        from safetensors.torch import save_file

        path = self.folder / f"layer-{layer}.safetensors"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        tensors = {k: v.contiguous() for k, v in values.items() if isinstance(v, torch.Tensor)}
        plain = {key: value for key, value in values.items() if key not in tensors}
        header = json.dumps({"cost": asdict(cost), "plain": plain})
        try:
            save_file(tensors, str(partial), metadata={"nnattr": header})
            os.replace(partial, path)
        except OSError as error:
            raise ResultError(f"The part {str(path)!r} could not be written: {error}") from error


def digest(study: Study) -> str:
    """A name for everything that a study's numbers depend on, but for where it runs."""
    provenance = study.frame().provenance
    metric = describe(study.metric)
    with contextlib.suppress(OSError, TypeError):  # no source at hand: the name has to do
        function = study.metric if inspect.isfunction(study.metric) else type(study.metric)
        metric += inspect.getsource(function)
    content = [
        provenance.method,
        {k: v for k, v in provenance.arguments.items() if k != "normalized"},
        metric,
        [provenance.model, provenance.revision, provenance.dtype],
        provenance.task_hash,
        provenance.versions,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
