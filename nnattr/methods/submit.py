"""Analyses that run while you do something else: send, keep the ticket, fetch the scores later."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nnattr.backend import NDIF
from nnattr.backend.ndif import Ticket
from nnattr.errors import BackendError, ResultError
from nnattr.methods.activation_patching import activation_patching, patching_job
from nnattr.methods.attribution_patching import attribution_job, attribution_patching
from nnattr.methods.frame import Frame
from nnattr.methods.study import Study
from nnattr.results import Scores

#: The methods that can be submitted, with their jobs and whether layers can be asked for apart.
JOBS: dict[Callable[..., Scores], tuple[Callable[..., dict[str, Any]], bool]] = {
    activation_patching: (patching_job, True),
    attribution_patching: (attribution_job, False),
}
#: Seconds between two looks at a job: it starts with the first and grows to the second.
PATIENCE = (0.1, 2.0)
#: Seconds after which a job of which the server knows nothing is lost.
LOST = 120.0


class _Slip(BaseModel):
    """What a job's file holds. No key: it is read anew from the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ticket: Ticket
    frame: Frame


@dataclass(frozen=True)
class Job:
    """An analysis that was sent to a server. Made by `submit` or `Job.load`.

    Attributes:
        ticket: the server's name for it.
        frame: how to read what it returns.
        backend: how to reach the server.
    """

    ticket: Ticket
    frame: Frame
    backend: NDIF

    def status(self) -> str:
        """The server's word: RECEIVED, QUEUED, RUNNING, COMPLETED, ... or UNKNOWN.

        Raises:
            BackendError: the job failed, or the server cannot be reached.
        """
        return self._fetch()[0]

    def result(self, timeout: float | None = None) -> Scores:
        """Wait for the scores.

        Args:
            timeout: seconds to wait at most; None waits for as long as it takes.

        Raises:
            BackendError: the job failed, the server cannot be reached or has lost it, or the time
                is over (the job goes on; call again).
        """
        started, pause = time.monotonic(), PATIENCE[0]
        known = started
        while True:
            state, outcome = self._fetch()
            if outcome is not None:
                self.frame.refuse(outcome.values)
                return self.frame.scores(outcome.values, outcome.cost)
            now = time.monotonic()
            waited = now - started
            known = now if state != "UNKNOWN" else known
            if now - known > LOST:
                raise BackendError(
                    f"The server at {self.ticket.host} does not know job {self.ticket.job_id}: it "
                    "was restarted, or has dropped the result. Submit the analysis again."
                )
            if timeout is not None and waited + pause > timeout:
                raise BackendError(
                    f"Job {self.ticket.job_id} is not done after {waited:.0f} s (state: {state}). "
                    "It goes on; ask again later."
                )
            time.sleep(pause)
            pause = min(2 * pause, PATIENCE[1])

    def cancel(self) -> None:
        """Ask the server to stop the job.

        Raises:
            BackendError: always, so far: NDIF's interface (0.1) offers clients no way to cancel.
        """
        raise BackendError(
            f"The server at {self.ticket.host} offers no way to cancel job {self.ticket.job_id}; "
            "it ends by itself, and its result can be ignored."
        )

    def save(self, path: str | Path) -> Path:
        """Write the ticket to a file, for `load` in another process.

        Raises:
            ResultError: the file cannot be written.
        """
        text = _Slip(ticket=self.ticket, frame=self.frame).model_dump_json(indent=1)
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise ResultError(f"The job could not be written to {str(path)!r}: {error}") from error
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, *, backend: NDIF | None = None) -> Job:
        """Read what `save` wrote.

        Args:
            path: the file.
            backend: how to reach the server, if other than by its address and your key.

        Raises:
            ResultError: there is no such file, or it is no job.
        """
        try:
            slip = _Slip.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise ResultError(f"{str(path)!r} is not the file of a submitted job.") from error
        return cls(slip.ticket, slip.frame, backend or NDIF(host=slip.ticket.host))

    def _fetch(self) -> Any:
        label = self.frame.provenance.method.replace("_", " ")
        return self.backend.fetch(self.ticket, label=label)


def submit(method: Callable[..., Scores], *args: Any, **arguments: Any) -> Job:
    """Send an analysis to the model's server and come back at once.

    ``submit(activation_patching, model, task, metric, site="z")`` takes what the method takes, but
    for ``checkpoint``. It is one job; several may be in flight.

    Returns:
        a `Job` with ``status()`` and ``result()``; ``save`` it to fetch the result from another
        process.

    Raises:
        BackendError: the model does not run on a server, or the server did not take the job.
        TaskError, MetricError, ArchError: as the method itself, before anything is sent.
    """
    if method not in JOBS:
        known = ", ".join(one.__name__ for one in JOBS)
        raise BackendError(f"{method!r} cannot be submitted; expected one of {known}.")
    bound = inspect.signature(method).bind(*args, **arguments)
    bound.apply_defaults()
    given = dict(bound.arguments)
    if given.pop("checkpoint") is not None:
        raise BackendError("A submitted job has no checkpoint: its ticket is what you keep.")
    job, by_layer = JOBS[method]
    study = Study(job, method.__name__, by_layer, **given)
    backend = study.model.backend
    if not isinstance(backend, NDIF):
        raise BackendError(
            f"{study.model.name} runs on {backend.name!r}, where nothing is submitted; call "
            f"{method.__name__} itself, or load the model with an NDIF backend."
        )
    label = study.method.replace("_", " ")
    ticket = backend.submit(study.model.nn, job, study.payload(), label=label)
    return Job(ticket, study.frame(), backend)
