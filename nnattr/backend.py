"""Where a job runs: in this process, in a rehearsal of a server, or on NDIF.

A *job* is a module-level function ``job(nn, tick, **payload) -> dict`` that opens nnsight traces on
the model ``nn`` it is given, calls ``tick(done, total)`` now and then, and returns tensors and plain
containers. A backend has one verb, ``run(nn, job, payload)``: the whole job is one nnsight session,
so wherever it runs its activations stay there and only what it returns comes back. This is the only
file that knows about remote execution.

===================  =================================================================================
`Local`              this process, on the weights that are loaded here
`Simulated`          serialise the session as for a server, rebuild it, and run *the rebuilt one* here:
                     what a server would refuse fails here too (nnsight's own ``remote="local"`` runs
                     the original objects instead). It cannot see packages a server lacks.
`NDIF`               the hosted service, or a server of your own; no weights are loaded here
===================  =================================================================================

Code that travels uses torch and the standard library only, and is shipped by value: nothing of
nnattr needs to be installed on the server.
"""

from __future__ import annotations

import linecache
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nnattr.config import UserConfig
from nnattr.errors import BackendError, NnattrError

Job = Callable[..., dict[str, Any]]
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What a job returned and what it cost.

    Attributes:
        values: what the job returned, on the CPU if it ran elsewhere.
        seconds: wall time as seen from here.
        jobs: requests sent to a server (0 when it ran here).
        bytes_sent, bytes_received: payload sizes on the wire (0 when it ran here).
    """

    values: dict[str, Any]
    seconds: float
    jobs: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Backend(Protocol):
    """A place that can run jobs."""

    @property
    def name(self) -> str:
        """How results and messages call this backend; never contains a key."""
        ...

    @property
    def holds_weights(self) -> bool:
        """Whether the model's weights must be loaded in this process."""
        ...

    def run(self, nn: Any, job: Job, payload: Mapping[str, Any], *, label: str) -> Outcome:
        """Run ``job(nn, tick, **payload)`` as one session; ``label`` names it to people."""
        ...


@dataclass(frozen=True)
class Local:
    """Run in this process."""

    name: str = field(default="local", init=False)
    holds_weights: bool = field(default=True, init=False)

    def run(self, nn: Any, job: Job, payload: Mapping[str, Any], *, label: str) -> Outcome:
        started = time.perf_counter()
        with _ProgressBar(label) as bar:
            values = _session(nn, job, payload, bar.tick, None, label)
        return Outcome(values, time.perf_counter() - started)


@dataclass(frozen=True)
class Simulated:
    """Run in this process what a server would run: the session serialised and rebuilt."""

    name: str = field(default="simulated", init=False)
    holds_weights: bool = field(default=True, init=False)

    def run(self, nn: Any, job: Job, payload: Mapping[str, Any], *, label: str) -> Outcome:
        started = time.perf_counter()
        loopback = _loopback(nn)
        values = _session(nn, job, payload, _no_tick, loopback, label)
        return Outcome(values, time.perf_counter() - started, 1, loopback.bytes_sent, 0)


@dataclass(frozen=True)
class NDIF:
    """Run on NDIF: the hosted service, or any server that speaks its protocol.

    Args:
        host: ``http(s)://host[:port]``; None means the host that nnsight is configured with.
        api_key: None means ``NDIF_API_KEY`` or nnsight's own configuration. It is never printed or
            stored in a result.
    """

    host: str | None = None
    api_key: str | None = field(default=None, repr=False)
    holds_weights: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.host is not None and not self.host.startswith(("http://", "https://")):
            raise BackendError(
                f"An NDIF host starts with http:// or https://, not {self.host!r}; "
                'for example NDIF(host="http://127.0.0.1:8001").'
            )

    @property
    def name(self) -> str:
        return f"ndif ({self.host})" if self.host else "ndif"

    def run(self, nn: Any, job: Job, payload: Mapping[str, Any], *, label: str) -> Outcome:
        started = time.perf_counter()
        wire = _wire(nn, self)
        values = _session(nn, job, payload, _print_tick, wire, label)
        seconds = time.perf_counter() - started
        return Outcome(values, seconds, 1, wire.bytes_sent, wire.bytes_received)


def resolve(backend: str | Backend | None) -> Backend:
    """The backend that ``backend`` names.

    ``None`` falls back to the environment variable ``NNATTR_BACKEND``, then to the user's
    configuration file, then to ``"local"``.

    Raises:
        BackendError: the name is none of ``"local"``, ``"simulated"``, ``"ndif"`` or a URL.
    """
    if backend is None:
        backend = os.environ.get("NNATTR_BACKEND") or UserConfig.read().backend
    if not isinstance(backend, str):
        return backend
    named: dict[str, Callable[[], Backend]] = {"local": Local, "simulated": Simulated, "ndif": NDIF}
    if backend in named:
        return named[backend]()
    if backend.startswith(("http://", "https://")):
        return NDIF(host=backend)
    raise BackendError(
        f"Unknown backend {backend!r}; expected 'local', 'simulated', 'ndif' or the "
        "http(s)://host:port of an NDIF server."
    )


def _session(
    nn: Any, job: Job, payload: Mapping[str, Any], tick: Tick, backend: Any, label: str
) -> dict[str, Any]:
    """Run ``job`` in one nnsight session; every foreign error becomes ours."""
    import nnsight

    nnsight.register("nnattr")  # ship our functions by value
    payload = dict(payload)
    try:
        with nn.session(backend=backend):
            result = nnsight.save(job(nn, tick, **payload))
    except NnattrError:
        raise
    except Exception as error:
        raise _translate(error, label, backend) from error
    return result


def _translate(error: Exception, label: str, backend: Any) -> BackendError:
    """Our error for one that nnsight, the server or the network raised."""
    lines = str(error).strip().splitlines()
    cause = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
    host = getattr(backend, "host", None)
    unreachable = isinstance(error, OSError) or "Failed to send request" in cause
    if host is not None and unreachable:
        return BackendError(
            f"{label}: no NDIF server answered at {host} ({cause}). Check the address, that the "
            "server is up (`nnattr models --backend ...`), or use backend='local'."
        )
    where = f"on the server at {host}" if host is not None else "in this process"
    return BackendError(f"{label} failed {where}: {cause}")


def _no_tick(done: int, total: int) -> None:
    """Report nothing."""


def _print_tick(done: int, total: int) -> None:
    """Report from a server: what a job prints there is sent to the client as a LOG line."""
    print(f"{done}/{total}", flush=True)


class _ProgressBar:
    """A tqdm bar that appears once the first tick says how long the work is."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None

    def __enter__(self) -> _ProgressBar:
        return self

    def tick(self, done: int, total: int) -> None:
        if self.bar is None:
            from tqdm.auto import tqdm

            quiet = not (sys.stderr.isatty() or "ipykernel" in sys.modules)
            self.bar = tqdm(total=total, desc=self.label, leave=False, disable=quiet, delay=1.0)
        self.bar.update(done - self.bar.n)

    def __exit__(self, *exc: object) -> None:
        if self.bar is not None:
            self.bar.close()


def _loopback(nn: Any) -> Any:
    """An nnsight backend that runs the serialised, rebuilt block in this process."""
    from nnsight.ndif import pull_env
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.backend import Backend as NnsightBackend
    from nnsight.tracing.globals import BLOCKS, SOURCES
    from nnsight.tracing.util import push

    class Loopback(NnsightBackend):
        bytes_sent = 0

        def __call__(self, tracer: Any) -> None:
            pull_env()
            nn.dispatch()
            frame = tracer.info.frame
            blob = RequestModel.serialize(tracer, True)
            self.bytes_sent = len(blob)
            # The rebuilt block must be compiled from the source that travelled, not from the
            # caches that this process holds for the same file name.
            caches = (linecache.cache, SOURCES, BLOCKS)
            snapshot = [dict(cache) for cache in caches]
            name = frame.f_code.co_filename
            SOURCES.pop(name, None)
            for key in [key for key in BLOCKS if key[0] == name]:
                del BLOCKS[key]
            try:
                objects = nn._remoteable_persistent_objects()  # no public name exists for these
                rebuilt = RequestModel.deserialize(blob, objects, True)
                rebuilt.execute(rebuilt.info.code)
                saved = {"result": rebuilt.info.frame.f_locals["result"]}  # what `_session` saves
            finally:
                for cache, before in zip(caches, snapshot, strict=True):
                    cache.clear()
                    cache.update(before)
            push(frame, saved)

    return Loopback()


def _wire(nn: Any, ndif: NDIF) -> Any:
    """nnsight's client for one blocking job, with the bytes counted."""
    import anyio.streams.file
    import anyio.streams.tls  # noqa: F401  nnsight breaks anyio's lazily imported modules
    from nnsight.intervention.backends.remote import RemoteBackend

    class Wire(RemoteBackend):
        bytes_sent = 0
        bytes_received = 0

        def send(self, request: Any, blob: bytes) -> Any:
            self.bytes_sent = len(blob)
            return super().send(request, blob)

        def finalize(self, content: bytes) -> Any:
            self.bytes_received = len(content)
            return super().finalize(content)

    try:
        return Wire(
            model_key(nn), host=ndif.host, api_key=ndif.api_key, env={"attn_implementation": nn.attn_implementation}
        )
    except Exception as error:
        raise BackendError(
            f"The model {nn.repo_id!r} could not be named to the server: {error}"
        ) from error


def model_key(nn: Any) -> str:
    """The name under which a server knows the model: a Hub id, or a folder both sides can see."""
    import json

    if not os.path.isdir(nn.repo_id):
        return nn.to_model_key()
    kind = type(nn)
    suffix = {"repo_id": nn.repo_id, "revision": nn.revision, "task": nn.task}
    return f"{kind.__module__}.{kind.__qualname__}:{json.dumps(suffix)}"
