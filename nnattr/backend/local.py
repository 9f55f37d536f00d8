"""Jobs in this process: plainly, or by way of the request that a server would get."""

from __future__ import annotations

import linecache
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, TextIO

from nnattr.backend.alone import alone
from nnattr.backend.client import print_tick, reported
from nnattr.backend.failures import too_large
from nnattr.backend.seam import Cost, JobFunction, Outcome, session
from nnattr.errors import BackendError, NnattrError, TooLargeError
from nnattr.progress import ProgressBar


@dataclass(frozen=True)
class Local:
    """Run in this process, on the weights that are loaded here."""

    name: str = field(default="local", init=False)
    holds_weights: bool = field(default=True, init=False)
    in_process: bool = field(default=True, init=False)
    max_job_seconds: float | None = field(default=None, init=False)
    max_job_bytes: int | None = field(default=None, init=False)

    def run(self, nn: Any, job: JobFunction, payload: Mapping[str, Any], *, label: str) -> Outcome:
        """Run the job here."""
        started = time.perf_counter()
        with ProgressBar(label) as bar:
            values = _here(nn, job, payload, bar.tick, None, label)
        return Outcome(values, Cost(time.perf_counter() - started))


@dataclass(frozen=True)
class Simulated:
    """Run in this process what a server would run: the session serialised and rebuilt.

    What a server would refuse fails here too. (nnsight's own ``remote="local"`` runs the original
    objects and misses that.) It cannot see packages that a server lacks.
    """

    name: str = field(default="simulated", init=False)
    holds_weights: bool = field(default=True, init=False)
    in_process: bool = field(default=False, init=False)
    max_job_seconds: float | None = None
    max_job_bytes: int | None = None

    def run(self, nn: Any, job: JobFunction, payload: Mapping[str, Any], *, label: str) -> Outcome:
        """Run what the request holds, here."""
        started = time.perf_counter()
        carrier = _loopback(nn)
        with ProgressBar(label) as bar, _heard(bar):
            values = _here(nn, job, payload, print_tick, carrier, label)
        return Outcome(values, Cost(time.perf_counter() - started, 1, carrier.bytes_sent))


class _Listener:
    """Where a rehearsed job prints: its progress goes to the bar, all else to where it went."""

    def __init__(self, bar: ProgressBar, out: TextIO) -> None:
        self.bar, self.out, self.line = bar, out, ""

    def write(self, text: str) -> int:
        """Take some text; whole lines are looked at."""
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            if done := reported(line):
                self.bar.tick(*done)
            else:
                self.out.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        self.out.flush()


@contextmanager
def _heard(bar: ProgressBar) -> Iterator[None]:
    """Show on the bar what a rehearsed job prints of its progress, as from a server."""
    listener = _Listener(bar, sys.stdout)
    with redirect_stdout(listener):  # type: ignore[type-var]
        yield
    sys.stdout.write(listener.line)


def _here(
    nn: Any, job: JobFunction, payload: Mapping[str, Any], tick: Any, carrier: Any, label: str
) -> dict[str, Any]:
    try:
        with alone():
            return session(nn, job, payload, tick, carrier)
    except NnattrError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
        kind = TooLargeError if too_large(f"{type(error).__name__} {error}") else BackendError
        raise kind(f"{label} failed in this process: {said}") from error


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
            caches: Any = (linecache.cache, SOURCES, BLOCKS)
            snapshot: list[dict[Any, Any]] = [dict(cache) for cache in caches]
            classes = _own_classes()
            name = frame.f_code.co_filename
            SOURCES.pop(name, None)
            for key in [key for key in BLOCKS if key[0] == name]:
                del BLOCKS[key]
            try:
                objects = nn._remoteable_persistent_objects()  # no public name exists for these
                rebuilt = RequestModel.deserialize(blob, objects, True)
                rebuilt.execute(rebuilt.info.code)
                saved = {"result": rebuilt.info.frame.f_locals["result"]}  # what `session` saves
            finally:
                for cache, before in zip(caches, snapshot, strict=True):
                    cache.clear()
                    cache.update(before)
                for kind, members in classes.items():
                    for member, value in members.items():
                        if vars(kind).get(member) is not value:
                            setattr(kind, member, value)
            push(frame, saved)

    return Loopback()


#: What a class has that was written as a function.
_BOUND = (FunctionType, property, classmethod, staticmethod)


def _own_classes() -> dict[type, dict[str, Any]]:
    """The package's classes and their functions as they are in this process.

    Reading a class that travelled by value gives the live one its rebuilt functions, whose globals
    are copies: a rehearsal has to put its own back.
    """
    modules = [module for name, module in sys.modules.items() if name.startswith("nnattr.")]
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    return {
        kind: {name: one for name, one in vars(kind).items() if isinstance(one, _BOUND)}
        for kind in kinds
        if kind.__module__.startswith("nnattr.")
    }
