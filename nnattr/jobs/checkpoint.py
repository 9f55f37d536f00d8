"""What is known of a study's answer on disk, in a folder named by a digest of all it depends on.

The same study finds it again, and another task, metric, model or argument never takes it. Loading
it runs no code. A job on a server is kept when it is done; one in this process also hands over what
it has found so far, so that what stops it costs a few seconds and not the job.
"""

from __future__ import annotations

import contextlib
import dis
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch

from nnattr import storage
from nnattr.backend import Cost
from nnattr.errors import BackendError, ResultError
from nnattr.jobs.found import Found
from nnattr.jobs.frame import Frame
from nnattr.jobs.plain import plain
from nnattr.jobs.study import Study
from nnattr.metrics import describe
from nnattr.model.edits import Edit
from nnattr.runs.as_built import is_users, runs_its_class

#: The file in a study's folder.
FILE = "found.safetensors"
#: Seconds of work that may be lost at least, and the share of the time that keeping may take.
PAUSE, SHARE = 1.0, 0.02
#: What says how an adapter of PEFT's is switched.
ADAPTER = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
#: Whose code is not read to tell metrics apart, beside the standard library's.
LIBRARIES = ("torch", "numpy", "transformers", "nnsight")
#: Hooks and forwards by their ids: what is kept here leaves its id to no other.
MARKED: dict[int, Any] = {}
#: Arguments that an answer does not depend on.
FREE = ("normalized", "max_memory")


class Store:
    """What is known of one study's answer, in a file.

    Args:
        folder: where; made if needed. Several studies may share it.
        study: whose; a digest of its content names its own folder.
        frame: what its answer must look like.

    Raises:
        ResultError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, study: Study, frame: Frame) -> None:
        self.path = Path(folder) / digest(study) / FILE
        self.frame = frame
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(
                f"The checkpoint {str(folder)!r} is not a writable folder."
            ) from error

    def read(self) -> Found:
        """What is known; nothing, if there is no file.

        Raises:
            ResultError: the file is damaged, or not of this study.
        """
        if not self.path.exists():
            return Found.nothing(self.frame)
        try:
            tensors, header = storage.read(self.path)
            self.frame.refuse({**tensors, **header["plain"]})
            if tensors["finished"].shape != (self.frame.layers,):
                raise ValueError("the finished layers are not those of this model")
            return Found(tensors, header["plain"], Cost(**header["cost"]))
        except (ResultError, KeyError, TypeError, ValueError, BackendError) as error:
            raise ResultError(
                f"{self.path} does not hold what is known of this study; delete it to compute it "
                "again."
            ) from error

    def write(self, found: Found, cost: Cost) -> None:
        """Keep what is known, and what it cost: a whole file appears at once, or none.

        Raises:
            ResultError: it cannot be written.
        """
        header = {"cost": asdict(cost), "plain": found.plain}
        storage.write(self.path, found.tensors, header)


class Keeper:
    """Keeps what a job in this process finds while it runs: now and then, as `PAUSE` says.

    Args:
        store: where it is kept.
        found: what is known; it grows.
        layers: those that the job is about.
    """

    def __init__(self, store: Store, found: Found, layers: list[int]) -> None:
        self.store, self.found, self.layers = store, found, layers
        self.began = time.perf_counter()
        self.next = self.began + PAUSE
        self.latest: tuple[slice, dict[str, Any]] | None = None

    def __call__(self, some: slice, values: dict[str, Any]) -> None:
        """Hear what the job has found for some examples; it goes on to fill ``values``."""
        if self.latest is not None and self.latest[0] != some:
            self._take()
        self.latest = some, values
        if time.perf_counter() >= self.next:
            self.keep()

    def keep(self) -> None:
        """Write down what was heard."""
        if self.latest is None:
            return
        began = time.perf_counter()
        self._take()
        self.store.write(self.found, self.found.cost + Cost(began - self.began))
        ended = time.perf_counter()
        self.next = ended + max(PAUSE, (ended - began) / SHARE)

    def _take(self) -> None:
        """What was heard last becomes a part of what is known."""
        if self.latest is not None:
            some, values = self.latest
            self.found.take(values, self.layers, some)


def digest(study: Study) -> str:
    """A digest of everything that a study's numbers depend on, except the backend."""
    provenance = study.frame().provenance
    content = [
        provenance.method,
        {k: v for k, v in provenance.arguments.items() if k not in FREE},
        study.engine,
        _named(study.metric),
        _code(study.metric),
        [provenance.model, provenance.revision, provenance.architecture, provenance.dtype],
        study.model.config.to_dict(),
        [*_weights(study.model.module), *_done_to(study.model.module)],
        [_edit(edit) for edit in study.model.edits],
        provenance.task_hash,
        provenance.versions,
    ]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _named(metric: Any) -> str:
    """The metric's name; of an object without a text of its own, not where it lies in memory."""
    plain = not inspect.isfunction(metric) and type(metric).__repr__ is object.__repr__
    return type(metric).__qualname__ if plain else describe(metric)


def _edit(edit: Edit) -> list[Any]:
    """What an edit does: in words, with all that it was made of."""
    return [edit.said, plain(edit.given), edit.prompts and edit.prompts.rows]


def _code(metric: Any) -> list[str]:
    """What a metric does: its source, the values that it was made with and those that it reads."""
    return _text(metric, {})


def _text(value: Any, seen: dict[int, Any]) -> list[str]:
    """A value in full: of a function or an object its source, and all that it holds or names.

    Tensors bit by bit, as their ``repr`` leaves out most of a long one, and rounds the rest.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        given = torch.as_tensor(value).detach().cpu().contiguous()
        bits = given.flatten().view(torch.uint8).numpy().tobytes()
        return [f"{given.dtype} {tuple(given.shape)} {hashlib.sha256(bits).hexdigest()}"]
    if id(value) in seen or inspect.ismodule(value) or inspect.isbuiltin(value):
        return [str(getattr(value, "__name__", type(value)))]
    if inspect.isroutine(value) and _is_a_librarys(value):
        return [f"{value.__module__}.{value!s}".partition(" at 0x")[0]]
    inside = _inside(value)
    if inside is None:
        return [repr(value)]
    seen[id(value)] = value  # held, so that no other gets its id
    found = [str(type(value))]
    with contextlib.suppress(OSError, TypeError):  # no source at hand: the name has to do
        own = inspect.isfunction(value) or inspect.isclass(value)
        found.append(inspect.getsource(value if own else type(value)))
    return [*found, *(text for one in inside for text in _text(one, seen))]


def _inside(value: Any) -> list[Any] | None:
    """What a value is made of; None of one that its ``repr`` says whole."""
    if isinstance(value, Mapping):
        return [one for pair in value.items() for one in pair]
    if isinstance(value, list | tuple):
        return list(value)
    if inspect.ismethod(value):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        named = {name: value.__globals__.get(name) for name in _globals(value.__code__)}
        return [value.__defaults__, value.__kwdefaults__, cells, named]
    if isinstance(value, torch.nn.Module):
        return [str(value), value.state_dict()]
    library = _is_a_librarys(value) or _is_a_librarys(type(value))
    if library or inspect.isclass(value) or not hasattr(value, "__dict__"):
        return None
    call = inspect.getattr_static(type(value), "__call__", None)
    return [vars(value), *([call] if inspect.isfunction(call) else [])]


def _globals(code: CodeType) -> list[str]:
    """The names of globals that code reads, in functions inside of it as well."""
    own = {one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return sorted(own.union(*map(_globals, inner)))


def _is_a_librarys(value: Any) -> bool:
    """Whether its code is a library's, which the versions in the digest stand for."""
    home = (getattr(value, "__module__", None) or "").partition(".")[0]
    return home in LIBRARIES or home in sys.stdlib_module_names - {"__main__"}


def _done_to(module: Any) -> list[str]:
    """What tells a module from the same weights with other hooks, forwards or adapters.

    What a hook does, no file can say: parts made with one are found again by this process alone.
    """
    marks = []
    for name, part in module.named_modules():
        hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        own = [hook for hook in hooks if is_users(hook)]
        own += [] if runs_its_class(part) else [vars(part)["__nnsight__"].original]
        MARKED.update({id(one): one for one in own})
        marks += [f"{name} {os.getpid()} {id(one)}" for one in own]
        switches = {key: repr(getattr(part, key)) for key in ADAPTER if hasattr(part, key)}
        marks += [f"{name} {switches}"] if switches else []
    return marks


def _weights(module: Any) -> list[str]:
    """Marks of the weights that are loaded here, which tell apart two models of one name."""
    marks = []
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.device.type != "meta":
            few = value.detach().flatten()[:: max(1, value.numel() // 16)].tolist()
            marks.append(f"{name} {value.dtype} {_sum(value.detach())} {few}")
    return [hashlib.sha256(mark.encode()).hexdigest()[:16] for mark in marks]


def _sum(value: torch.Tensor) -> float:
    """A number that another bit in any weight changes: the sum of the memory as integers.

    It takes a fifth of the time of a sum in double precision, and is the same on any number of
    threads. Weights whose memory cannot be seen (of some quantizers) are summed as they are.
    """
    try:
        memory = value.contiguous().flatten().view(torch.uint8)
        whole = len(memory) // 8 * 8
        return memory[:whole].view(torch.int64).sum().item() + memory[whole:].sum().item()
    except (RuntimeError, NotImplementedError, AttributeError):
        return value.sum(dtype=torch.float64).item()
