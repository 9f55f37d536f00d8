"""The seam between what is computed and where: a job, its cost, and the one verb of a backend.

A *job* is a module-level function ``job(nn, tick, **payload) -> dict`` that opens nnsight traces
on the model ``nn`` it is given, calls ``tick(done, total)`` now and then, and returns tensors and
plain containers. The whole job is one nnsight session, so wherever it runs its activations stay
there and only what it returns comes back. A job that travels uses torch and the standard library
only and is shipped by value: nothing of nnattr needs to be installed on the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeAlias, runtime_checkable

JobFunction: TypeAlias = Callable[..., dict[str, Any]]
Tick: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Cost:
    """What running jobs cost; costs of several jobs add up.

    Attributes:
        seconds: wall time as seen from here.
        jobs: requests sent to a server (0 when it ran here).
        bytes_sent: size of what went up.
        bytes_received: size of what came down.
        queue_seconds: time between the server's taking a job and its starting it.
        run_seconds: time the server ran, by its own clock.
    """

    seconds: float = 0.0
    jobs: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Cost(**sums)


@dataclass(frozen=True)
class Outcome:
    """What a job returned, on the CPU if it ran elsewhere, and its cost."""

    values: dict[str, Any]
    cost: Cost


@runtime_checkable
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

    @property
    def in_process(self) -> bool:
        """Whether a job is called here with the very objects of its payload, and may call them."""
        ...

    @property
    def max_job_seconds(self) -> float | None:
        """Longest that one job should run, or None; analyses are split to keep within it."""
        ...

    @property
    def max_job_bytes(self) -> int | None:
        """Most bytes that one job should return, or None; analyses are split to keep within it."""
        ...

    def run(self, nn: Any, job: JobFunction, payload: Mapping[str, Any], *, label: str) -> Outcome:
        """Run ``job(nn, tick, **payload)`` as one session; ``label`` names it to people."""
        ...


def silent(done: int, total: int) -> None:
    """A tick that reports nothing."""


def session(nn: Any, job: JobFunction, payload: Mapping[str, Any], tick: Tick, carrier: Any) -> Any:
    """Run ``job`` in one nnsight session carried by ``carrier``, an nnsight backend or None.

    Returns None when the carrier does not wait for the result.
    """
    import nnsight

    nnsight.register("nnattr")  # ship our functions by value
    payload, result = dict(payload), None
    with nn.session(backend=carrier):
        result = nnsight.save(job(nn, tick, **payload))
    return result  # noqa: RET504  the block above may run elsewhere and assign it from there
