"""A study in as few jobs as its backend's limits allow, kept on disk as it goes on.

Without limits a study is one job. A limit on a job's seconds or bytes, or a server that refuses a
job for its size, splits it by layers, never by cell. With a checkpoint what is found is kept
(`nnattr.jobs.checkpoint`), so that the same study picks up where it stopped. People see one bar.
"""

from __future__ import annotations

from pathlib import Path

from nnattr.backend import Outcome
from nnattr.errors import TooLargeError
from nnattr.jobs.checkpoint import Keeper, Store
from nnattr.jobs.found import Found
from nnattr.jobs.frame import Frame
from nnattr.jobs.study import Study
from nnattr.progress import ProgressBar
from nnattr.results import Scores


def run(study: Study, checkpoint: str | Path | None = None) -> Scores:
    """The answer to a study, computed where its model's backend says.

    Args:
        study: what is asked.
        checkpoint: a folder that keeps what is found.

    Raises:
        BackendError, ResultError: see `in_jobs`.
        MetricError, TaskError: see `nnattr.jobs.frame.Frame.scores`.
    """
    frame = study.frame()
    with ProgressBar(_name(study)) as bar:
        store = Store(checkpoint, study, frame) if checkpoint is not None else None
        found = in_jobs(study, frame, store, bar)
    return frame.scores(found.values(), found.cost)


def in_jobs(study: Study, frame: Frame, store: Store | None, bar: ProgressBar) -> Found:
    """What is found for all layers.

    Raises:
        BackendError: a job failed, and one of fewer layers would not help or failed as well. What
            was found stays in the store.
        ResultError: the store cannot be written, or holds something else.
    """
    found = Found.nothing(frame) if store is None else store.read()
    backend, size = study.model.backend, _first_size(study, frame)
    asked = frame.layers if frame.asked_layers is None else len(frame.asked_layers)
    while pending := found.missing():
        layers = pending[:size] if study.by_layer else pending
        left, after = len(pending), len(pending) - len(layers)
        bar.next_part(1 - left / asked, 1 - after / asked)
        try:
            outcome = _outcome(study, frame, found, store, layers)
        except TooLargeError:
            if not (study.by_layer and len(layers) > 1):
                raise
            size = len(layers) // 2
            continue
        found.finish(outcome.values, layers, outcome.cost)
        if store is not None:
            store.write(found, found.cost)
        if backend.max_job_seconds is not None:
            seconds = outcome.cost.run_seconds or outcome.cost.seconds
            size = max(1, int(len(layers) * backend.max_job_seconds / max(seconds, 1e-3)))
            size = min(size, _byte_limit(study, frame))
    return found


def _outcome(
    study: Study, frame: Frame, found: Found, store: Store | None, layers: list[int]
) -> Outcome:
    """The outcome of one job about these layers, which is kept while it runs if that can be."""
    payload, label = study.payload(layers), _label(study, layers)
    known = found.change(layers)
    if known is not None:
        payload["known"] = known
    keeper = None
    if store is not None and study.model.backend.in_process:
        payload["keep"] = keeper = Keeper(store, found, layers)
    try:
        outcome = study.model.run(study.job, payload, label=label, said=frame.said)
    except BaseException:  # whatever stopped it, also from the keyboard
        if keeper is not None:
            keeper.keep()
        raise
    frame.refuse(outcome.values, len(layers))
    return outcome


def _first_size(study: Study, frame: Frame) -> int:
    """Layers in the first job: one where its time must be measured."""
    timed = study.model.backend.max_job_seconds is not None
    return 1 if timed else _byte_limit(study, frame)


def _byte_limit(study: Study, frame: Frame) -> int:
    """Layers whose scores fit the limit on a job's bytes; all where there is none."""
    limit = study.model.backend.max_job_bytes
    if limit is None:
        return frame.layers
    per_layer = 4 * len(frame.prompts) * frame.units * frame.cells
    return max(1, min(frame.layers, limit // per_layer))


def _name(study: Study) -> str:
    """What people call the study."""
    return study.method.replace("_", " ")


def _label(study: Study, layers: list[int]) -> str:
    """What messages call a job: the method, and its layers where it can be split."""
    name = _name(study)
    return f"{name}, {study.jobs_of} {layers[0]}-{layers[-1]}" if study.by_layer else name
