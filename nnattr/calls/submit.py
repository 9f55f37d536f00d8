"""Calls that run while you do something else: send, keep the ticket, fetch the result later.

A method asks its model's backend to run a job and reads what comes back. So a call is submitted by
calling the method on a backend that sends the first job and stops there (`Sending`), and its result
is read by calling it again on one that has the answer (`Fetched`). What a method asks for after
that (few ask twice) runs then, as in any other call.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nnattr.arguments import JsonFile, checked
from nnattr.backend import NDIF, JobFunction, Outcome
from nnattr.backend.ndif import Ticket
from nnattr.calls.registry import named, row_of
from nnattr.errors import BackendError, ResultError
from nnattr.jobs.plain import plain, restored
from nnattr.model.edited import edited
from nnattr.model.load import load
from nnattr.model.model import Model

#: Seconds between two looks at a job: it starts with the first and grows to the second.
PATIENCE = (0.1, 2.0)
#: Seconds after which a job of which the server knows nothing is lost.
LOST = 120.0


class Sent(BaseException):
    """Ends a call whose job was sent: no failure, so not an `Exception`.

    Attributes:
        ticket: the server's name for the job.
        job: the name of the job's function.
    """

    def __init__(self, ticket: Ticket, job: str) -> None:
        super().__init__(ticket, job)
        self.ticket, self.job = ticket, job


class Sending:
    """A backend that sends a job and does not wait for it."""

    holds_weights = False
    in_process = False
    max_job_seconds = None
    max_job_bytes = None

    def __init__(self, server: NDIF, label: str) -> None:
        self.server, self.label, self.name = server, label, server.name

    def run(self, nn: Any, job: JobFunction, payload: Mapping[str, Any], *, label: str) -> Outcome:
        """Send the job and end the call with `Sent`."""
        raise Sent(self.server.submit(nn, job, payload, label=self.label), job.__name__)


class Fetched:
    """A backend whose answer to the first job is there already; later ones run on the server."""

    holds_weights = False
    in_process = False
    max_job_seconds = None
    max_job_bytes = None

    def __init__(self, server: NDIF, job: str, outcome: Outcome) -> None:
        self.server, self.name = server, server.name
        self.answers = {job: outcome}

    def run(self, nn: Any, job: JobFunction, payload: Mapping[str, Any], *, label: str) -> Outcome:
        """What the first job returned, or what another one returns."""
        known = self.answers.pop(job.__name__, None)
        return known or self.server.run(nn, job, payload, label=label)


class _Slip(BaseModel):
    """What a job's file holds. No key: it is read anew from the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ticket: Ticket
    job: str
    method: str
    model: str
    revision: str | None
    edits: tuple[dict[str, Any], ...] = ()
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A call that was sent to a server. Made by `submit` or `Job.load`.

    Attributes:
        ticket: the server's name for it.
        job: the name of the function that runs there.
        method: the method that was called.
        arguments: what it was called with, the model among it, by name.
        backend: how to reach the server.
    """

    ticket: Ticket
    job: str
    method: Callable[..., Any]
    arguments: Mapping[str, Any]
    backend: NDIF

    def status(self) -> str:
        """The server's word: RECEIVED, QUEUED, RUNNING, COMPLETED, ... or UNKNOWN.

        Raises:
            BackendError: the job failed, or the server cannot be reached.
        """
        return self._fetch()[0]

    @checked
    def result(self, timeout: float | None = None) -> Any:
        """Wait for what the method returns.

        Args:
            timeout: seconds to wait at most; None waits for as long as it takes.

        Raises:
            BackendError: the job failed, the server cannot be reached or has lost it, or the time
                is over (the job goes on; call again).
            NnattrError: as the method itself.
        """
        model = self.arguments["model"]
        answered = Fetched(self.backend, self.job, self._wait(timeout))
        return self.method(**{**self.arguments, "model": replace(model, backend=answered)})

    def cancel(self) -> None:
        """Ask the server to stop the job.

        Raises:
            BackendError: always, so far: NDIF's interface (0.1) offers clients no way to cancel.
        """
        raise BackendError(
            f"The server at {self.ticket.host} offers no way to cancel job {self.ticket.job_id}; "
            "it ends by itself, and its result can be ignored."
        )

    @checked
    def save(self, path: JsonFile) -> Path:
        """Write the ticket and the call to a ``.json`` file, for `load` in another process.

        Raises:
            ArgumentError: the path has another ending.
            ResultError: the file cannot be written, or an argument cannot.
        """
        model = self.arguments["model"]
        given = {name: value for name, value in self.arguments.items() if name != "model"}
        slip = _Slip(
            ticket=self.ticket,
            job=self.job,
            method=row_of(self.method).name,
            model=model.name,
            revision=model.revision,
            edits=tuple(plain(edit.given) for edit in model.edits),
            arguments={name: plain(value) for name, value in given.items()},
        )
        try:
            Path(path).write_text(slip.model_dump_json(indent=1), encoding="utf-8")
        except OSError as error:
            raise ResultError(f"The job could not be written to {str(path)!r}: {error}") from error
        return Path(path)

    @classmethod
    @checked
    def load(
        cls, path: str | Path, *, model: Model | None = None, backend: NDIF | None = None
    ) -> Job:
        """Read what `save` wrote.

        Args:
            path: the file.
            model: the model that it was called on; by default it is loaded by its name, without
                weights.
            backend: how to reach the server, if other than by its address and your key.

        Raises:
            ResultError: there is no such file, or it is not the file of a job.
        """
        try:
            slip = _Slip.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise ResultError(f"{str(path)!r} is not the file of a submitted job.") from error
        server = backend or NDIF(host=slip.ticket.host)
        if model is None:
            model = load(slip.model, revision=slip.revision, backend=server)
            edits = [restored(one) for one in slip.edits]
            model = edited(model, edits) if edits else model
        arguments = {name: restored(value) for name, value in slip.arguments.items()}
        method = named(slip.method).function
        return cls(slip.ticket, slip.job, method, {"model": model, **arguments}, server)

    def _wait(self, timeout: float | None) -> Outcome:
        """What the job returned, once it is done."""
        started, pause = time.monotonic(), PATIENCE[0]
        known = started
        while True:
            state, outcome = self._fetch()
            if outcome is not None:
                return outcome
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

    def _fetch(self) -> tuple[str, Outcome | None]:
        return self.backend.fetch(self.ticket, label=_label(self.method))


def submit(method: Callable[..., Any], /, *args: Any, **arguments: Any) -> Job:
    """Send a call to the model's server and come back at once.

    ``submit(activation_patching, model, task, metric, site="z")`` takes what the method takes, but
    for ``checkpoint``. Every method that returns a result can be submitted. Several jobs may be in
    flight.

    Returns:
        a `Job` with ``status()`` and ``result()``; ``save`` it to fetch the result from another
        process.

    Raises:
        BackendError: the model does not run on a server, or the server did not take the job.
        NnattrError: as the method itself, before anything is sent.
    """
    row_of(method)
    bound = inspect.signature(method).bind(*args, **arguments)
    model = bound.arguments["model"]
    if bound.arguments.get("checkpoint") is not None:
        raise BackendError("A submitted job has no checkpoint: its ticket is what you keep.")
    server = model.backend
    if not isinstance(server, NDIF):
        raise BackendError(
            f"{model.name} runs on {server.name!r}, where nothing is submitted; call "
            f"{method.__name__} itself, or load the model with an NDIF backend."
        )
    given = dict(bound.arguments)
    sending = replace(model, backend=Sending(server, _label(method)))
    try:
        method(**{**given, "model": sending})
    except Sent as sent:
        return Job(sent.ticket, sent.job, method, given, server)
    raise BackendError(f"{method.__name__} needed no job: call it, its result is there at once.")


def _label(method: Callable[..., Any]) -> str:
    """What people and messages call the job."""
    return method.__name__.replace("_", " ")
