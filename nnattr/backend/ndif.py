"""Jobs on NDIF: one request up, one small result down, in our own words when it goes wrong.

**What a host is trusted with.** A server gets your prompts and the code of the analysis, and you
believe its numbers. What it sends back is read as tensors and plain containers only
(`nnattr.backend.reading`): a host that sends anything else, such as an object whose unpickling runs
code, is refused.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from nnattr.backend import reading
from nnattr.backend.progress import ProgressBar
from nnattr.backend.seam import Cost, JobFunction, Outcome, session, silent
from nnattr.errors import BackendError, NnattrError

#: A job prints its progress on the server; the server forwards what is printed.
PROGRESS = "nnattr-progress"
#: How often a request that no server took is sent again, and the first pause in seconds.
RETRIES, PAUSE = 2, 0.5


@dataclass(frozen=True)
class NDIF:
    """Run on NDIF: the hosted service, or any server that speaks its protocol.

    Args:
        host: ``http(s)://host[:port]``; None means the host that nnsight is configured with.
        api_key: None means ``NDIF_API_KEY`` or nnsight's own configuration. It is never printed or
            stored in a result.
        timeout: seconds to wait for one job before giving up, or None.
        max_job_seconds: split analyses so that a job runs about this long at most.
        max_job_bytes: split analyses so that a job returns about this many bytes at most.
    """

    host: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float | None = None
    max_job_seconds: float | None = None
    max_job_bytes: int | None = None
    holds_weights: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.host is not None and not self.host.startswith(("http://", "https://")):
            raise BackendError(
                f"An NDIF host starts with http:// or https://, not {self.host!r}; "
                'for example NDIF(host="http://127.0.0.1:8001").'
            )

    @property
    def name(self) -> str:
        """``ndif``, with the host where it is not the default one."""
        return f"ndif ({self.host})" if self.host else "ndif"

    def run(self, nn: Any, job: JobFunction, payload: Mapping[str, Any], *, label: str) -> Outcome:
        """Send the job, wait for it, and return what it returned.

        Sending is tried again, after a pause, only where no server took the request: a job that was
        taken is never sent twice.
        """
        started = time.perf_counter()
        for attempt in range(RETRIES + 1):
            with ProgressBar(label, delay=0.5) as bar:
                carrier = _carrier(nn, self, bar, label)
                try:
                    values = session(nn, job, payload, print_tick, carrier)
                except NnattrError:
                    raise
                except Exception as error:
                    if carrier.job_id is None and _passing(error) and attempt < RETRIES:
                        time.sleep(PAUSE * 2**attempt)
                        continue
                    raise translate(error, carrier, label) from _shown(error, carrier)
            return Outcome(_checked(values, carrier, label), carrier.cost(started))
        raise AssertionError("the loop returns or raises")

    def submit(
        self, nn: Any, job: JobFunction, payload: Mapping[str, Any], *, label: str
    ) -> Ticket:
        """Send the job and come back at once with what is needed to fetch its result."""
        carrier = _carrier(nn, self, ProgressBar(label), label, blocking=False)
        try:
            session(nn, job, payload, silent, carrier)
        except Exception as error:
            raise translate(error, carrier, label) from _shown(error, carrier)
        return Ticket(carrier.job_id, carrier.host, carrier.model_key, carrier.bytes_sent)

    def fetch(self, ticket: Ticket, *, label: str) -> tuple[str, Outcome | None]:
        """The state of a submitted job, and its outcome once it is done.

        Raises:
            BackendError: the job failed, or the server cannot be reached.
        """
        bar = ProgressBar(label)
        carrier = _client(self, ticket.host, ticket.model_key, bar, job_id=ticket.job_id)
        try:
            values = carrier.poll()
        except Exception as error:
            raise translate(error, carrier, label) from _shown(error, carrier)
        state = carrier.status.value if carrier.status is not None else "UNKNOWN"
        if values is None:
            return state, None
        cost = replace(carrier.cost(0.0), seconds=0.0, bytes_sent=ticket.bytes_sent)
        return state, Outcome(_checked(values, carrier, label), cost)


class Ticket(NamedTuple):
    """A submitted job: enough to ask for its result from another process. Holds no key."""

    job_id: str
    host: str
    model_key: str
    bytes_sent: int


def print_tick(done: int, total: int) -> None:
    """Report progress from a server, as a line that its client recognises."""
    print(f"nnattr-progress {done}/{total}", flush=True)


def model_key(nn: Any) -> str:
    """The name under which a server knows the model: a Hub id, or a folder both sides can see."""
    if not os.path.isdir(nn.repo_id):
        return nn.to_model_key()
    kind = type(nn)
    suffix = {"repo_id": nn.repo_id, "revision": nn.revision, "task": nn.task}
    return f"{kind.__module__}.{kind.__qualname__}:{json.dumps(suffix)}"


class StatusLine:
    """Shows a job's state and progress on a bar, and keeps the clock.

    It stands in for nnsight's own display, whose three names it has.
    """

    enabled = True

    def __init__(self, bar: ProgressBar, timeout: float | None) -> None:
        self.bar = bar
        self.timeout = timeout
        self.began = time.perf_counter()
        self.taken: float | None = None
        self.started: float | None = None
        self.state = "sent"

    def update(self, response: Any) -> None:
        """Take a status of the server."""
        now = time.perf_counter()
        status, text = response.status.value, response.description or ""
        if status == "LOG":
            if text.startswith(PROGRESS):
                done, total = text.split()[1].split("/")
                self.bar.tick(int(done), int(total))
            return
        self.taken = self.taken or now
        if status == "RUNNING":
            self.started = self.started or now
        self.state = status
        self.bar.say(f"{status.lower()} {text}".strip()[:60])
        self.refresh()

    def refresh(self) -> None:
        """Called while waiting: gives up when the time is over."""
        waited = time.perf_counter() - self.began
        if self.timeout is not None and waited > self.timeout:
            raise TimeoutError(f"no result after {waited:.0f} s (last state: {self.state})")

    @property
    def queue_seconds(self) -> float:
        """Time between the server's taking the job and its starting it."""
        return (self.started - self.taken) if self.taken and self.started else 0.0


def _carrier(nn: Any, ndif: NDIF, bar: ProgressBar, label: str, **options: Any) -> Any:
    """A client for jobs of this model."""
    try:
        env = {"attn_implementation": nn.attn_implementation}
        return _client(ndif, ndif.host, model_key(nn), bar, env=env, **options)
    except Exception as error:
        raise BackendError(
            f"{label}: the model {nn.repo_id!r} could not be named to the server, which needs the "
            f"Hugging Face hub or a local folder ({type(error).__name__}: {error})."
        ) from error


def _client(ndif: NDIF, host: str | None, key: str, bar: ProgressBar, **options: Any) -> Any:
    """The client of nnsight, with bytes counted, results read safely and our own status line."""
    from nnsight.intervention.backends.remote import RemoteBackend
    from nnsight.schema.response import ResponseModel

    class Carrier(RemoteBackend):
        bytes_sent = 0
        bytes_received = 0
        display: Any

        def _post(self, request: Any, blob: bytes) -> Any:
            self.bytes_sent = len(blob)  # no public name sees it on the way
            response = super()._post(request, blob)
            self.job_id = response.id
            return response

        @staticmethod
        def parse(message: str | bytes) -> Any:
            if isinstance(message, str):
                return ResponseModel.model_validate_json(message)
            return ResponseModel(**reading.message(message))

        def finalize(self, content: bytes) -> Any:
            self.bytes_received = len(content)
            return reading.result(content, self.compress)

        def cost(self, started: float) -> Cost:
            return Cost(
                seconds=time.perf_counter() - started,
                jobs=1,
                bytes_sent=self.bytes_sent,
                bytes_received=self.bytes_received,
                queue_seconds=self.display.queue_seconds,
                run_seconds=float((self.meta or {}).get("runtime") or 0.0),
            )

    client = Carrier(key, host=host, api_key=ndif.api_key, **options)
    client.display = StatusLine(bar, ndif.timeout)
    return client


def _passing(error: Exception) -> bool:
    """Whether a request failed before any server took it, so that sending it again is safe."""
    return isinstance(error, ConnectionError) or "Failed to send request: [Errno" in str(error)


def _shown(error: Exception, carrier: Any) -> Exception | None:
    """The error as the cause of ours, unless it repeats the key, as servers do with a bad one."""
    return None if carrier.api_key and carrier.api_key in str(error) else error


def _checked(values: Any, carrier: Any, label: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise BackendError(
            f"{label}: the server at {carrier.host} sent {type(values).__name__} where the job's "
            "result was expected. Run it again; if it persists, the server's version may not fit."
        )
    return values


#: What a failure's text says, whether only before the server took the job, and what we say of it.
EXPLANATIONS: tuple[tuple[tuple[str, ...], bool, str], ...] = (
    (
        ("401", "403", "api key", "api_key", "unauthorized", "forbidden"),
        True,
        "the key was refused. Set NDIF_API_KEY, or pass NDIF(api_key=...)",
    ),
    (
        ("version", "upgrade"),
        True,
        "the server refuses this client's version. Install the nnsight version it names",
    ),
    (
        ("could not deploy", "not deployed", "no such model"),
        False,
        "the server could not deploy this model. See `nnattr models --backend ...` for what it has",
    ),
    (
        ("out of memory",),
        False,
        "the server ran out of memory. Use fewer or shorter prompts",
    ),
    (
        ("unsupported global", "weightsunpickler", "weights only load failed"),
        False,
        "the result holds something other than tensors and plain values, and was not read",
    ),
    (
        ("submitting request to model deployment",),
        False,
        "the model's process on the server died. It restarts by itself; run the analysis again",
    ),
)


def translate(error: Exception, carrier: Any, label: str) -> BackendError:
    """Our error for one that nnsight, the server or the network raised."""
    text = str(error).strip()
    if carrier.api_key:
        text = text.replace(carrier.api_key, "***")
    cause = f"{type(error).__name__}: {(text.splitlines() or [''])[-1]}"
    host = carrier.host
    for marks, before, explanation in EXPLANATIONS:
        fits = any(mark in text.lower() for mark in marks)
        if fits and not (before and carrier.job_id is not None):
            return BackendError(f"{label} on {host}: {explanation} ({cause}).")
    if isinstance(error, TimeoutError):
        return BackendError(
            f"{label} on {host}: {error}. The job may still be running; raise NDIF(timeout=...) or "
            "submit it with nnattr.submit."
        )
    if carrier.job_id is None:
        return BackendError(
            f"{label}: no NDIF server answered at {host} ({cause}). Check the address and that the "
            "server is up, or use backend='local'."
        )
    if type(error).__name__ == "RemoteError":
        return BackendError(f"{label} failed on the server at {host}: {cause}")
    return BackendError(
        f"{label}: the connection to {host} broke, or the answer was not complete, while waiting "
        f"for job {carrier.job_id} ({cause}). Run it again; with checkpoint= finished parts are "
        "kept."
    )
