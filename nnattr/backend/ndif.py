"""Jobs on NDIF: one request up, one small result down, in our own words when it goes wrong.

**What a host is trusted with.** A server gets your prompts and the code of the analysis, and you
believe its numbers. What it sends back is read as tensors and plain containers only
(`nnattr.backend.reading`): a host that sends anything else, such as an object whose unpickling runs
code, is refused.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from nnattr.backend.client import client, print_tick
from nnattr.backend.failures import interrupted, not_accepted, translate, without_key
from nnattr.backend.seam import JobFunction, Outcome, session, silent
from nnattr.errors import BackendError, NnattrError
from nnattr.progress import ProgressBar

#: How often a request that no server took is sent again, and the first pause in seconds.
RETRIES, PAUSE = 2, 0.5


class Ticket(NamedTuple):
    """A submitted job: enough to ask for its result from another process. Holds no key."""

    job_id: str
    host: str
    model_key: str
    bytes_sent: int


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
    in_process: bool = field(default=False, init=False)

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
        began = time.perf_counter()
        with ProgressBar(label, delay=0.5) as bar:
            made, values = self._send(nn, job, payload, print_tick, bar)
        if values is None:
            raise BackendError(f"{label}: {made.host} says that the job is done, without a result.")
        return Outcome(values, made.cost(began))

    def submit(
        self, nn: Any, job: JobFunction, payload: Mapping[str, Any], *, label: str
    ) -> Ticket:
        """Send the job and come back at once with what is needed to fetch its result."""
        with ProgressBar(label, delay=0.5) as bar:
            made, _ = self._send(nn, job, payload, silent, bar, blocking=False)
        return Ticket(made.job_id, made.host, made.model_key, made.bytes_sent)

    def fetch(self, ticket: Ticket, *, label: str) -> tuple[str, Outcome | None]:
        """The state of a submitted job, and its outcome once it is done.

        Raises:
            BackendError: the job failed, or the server cannot be reached.
        """

        def make() -> Any:
            return self._client(ticket.model_key, bar, ticket.host, job_id=ticket.job_id)

        with ProgressBar(label, delay=0.5) as bar:
            made, values = _tried(make, lambda made: made.poll(), interrupted, label)
        state = made.status.value if made.status is not None else "UNKNOWN"
        if values is None:
            return state, None
        cost = made.cost(0.0)
        cost = replace(cost, seconds=cost.run_seconds, bytes_sent=ticket.bytes_sent)
        return state, Outcome(values["result"], cost)

    def _send(
        self,
        nn: Any,
        job: JobFunction,
        payload: Mapping[str, Any],
        tick: Any,
        bar: ProgressBar,
        **options: Any,
    ) -> tuple[Any, Any]:
        """The client that a server took the job from, and what came back."""
        key, env = _named(nn, bar.label), {"attn_implementation": nn.attn_implementation}

        def make() -> Any:
            return self._client(key, bar, self.host, env=env, **options)

        def send(made: Any) -> Any:
            return session(nn, job, payload, tick, made)

        return _tried(make, send, not_accepted, bar.label)

    def _client(self, key: str, bar: ProgressBar, host: str | None, **options: Any) -> Any:
        given = {"host": host, "api_key": self.api_key, "timeout": self.timeout}
        return client(key, bar, **given, **options)


def _tried(
    make: Callable[[], Any],
    call: Callable[[Any], Any],
    harmless: Callable[[Exception, Any], bool],
    label: str,
) -> tuple[Any, Any]:
    """A new client and what the call gave, tried a few times while its failure is harmless."""
    for attempt in itertools.count():
        made = make()
        try:
            return made, call(made)
        except NnattrError:
            raise
        except Exception as error:
            failure = error
        if attempt == RETRIES or not harmless(failure, made):
            # outside the handler: the error would stay with ours as its context otherwise
            raise translate(failure, made, label) from without_key(failure, made)
        made.display.bar.say(f"no answer, try {attempt + 2} of {RETRIES + 1}")
        time.sleep(PAUSE * 2**attempt)
    raise AssertionError("counting does not end")


def model_key(nn: Any) -> str:
    """The name under which a server knows the model: a Hub id, or a folder both sides can see."""
    if not os.path.isdir(nn.repo_id):
        return nn.to_model_key()
    kind = type(nn)
    suffix = {"repo_id": nn.repo_id, "revision": nn.revision, "task": nn.task}
    return f"{kind.__module__}.{kind.__qualname__}:{json.dumps(suffix)}"


def _named(nn: Any, label: str) -> str:
    try:
        return model_key(nn)
    except Exception as error:
        raise BackendError(
            f"{label}: the model {nn.repo_id!r} could not be named to the server, which needs the "
            f"Hugging Face hub or a local folder ({type(error).__name__}: {error})."
        ) from error
