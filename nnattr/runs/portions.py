"""The way through examples: as many at a time as fit, half as many where memory runs out.

    portions = Portions(nn, tick, total=len(payload["ids"]), **payload["portions"])
    for some in portions:
        with portions.attempt():
            portions.keep({"logits": ...})  # of the examples in the slice ``some``
    return portions.joined()

Nothing is kept from one portion to the next but what the job returns. Where memory runs out inside
an attempt, what it did is forgotten, and half as many examples are tried. A job that cannot go on
raises `RefusedError`. `Portions.joined` adds the ``rows`` of the largest pass, the ``peak`` of
memory and the ``dtype`` that was computed in.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

#: Tokens in one forward pass, unless a single example already has more.
TOKENS_PER_FORWARD = 4096
#: Tokens of one pass on a processor: enough for its matrix units, few enough for its caches.
CPU_TOKENS = 768
#: The share of what is free that is planned with.
MARGIN = 0.7
#: What is planned with where nothing says how much is free.
UNKNOWN = 2 << 30
#: Words by which a failure says that memory ran out.
RAN_OUT = ("out of memory", "not enough memory", "allocate memory")


class RefusedError(Exception):
    """A job cannot do what was asked; it then returns ``{"refused": (kind, reason)}``.

    Attributes:
        kind: which error the client raises: ``"arch"``, ``"backend"`` or ``"metric"``.
        reason: what it says.
    """

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        self.reason = reason


def answered(compute: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What a job computes that goes through no examples, or what it refused with."""
    try:
        return compute(*given)
    except RefusedError as error:
        return {"refused": (error.kind, error.reason)}


class Budget:
    """What may be used of memory. The one value of a job that changes while it runs.

    Attributes:
        bytes: to plan with besides the weights; lowered where memory ran out nevertheless.
        tokens: the most that one pass runs.
        rows: how many the largest pass had.
    """

    def __init__(self, bytes: int, tokens: int) -> None:
        self.bytes = bytes
        self.tokens = tokens
        self.rows = 0

    def fitting(self, rows: int, need: int, tokens: int, multiple: int = 1) -> int:
        """How many of these rows the next pass takes.

        Args:
            rows: how many are left.
            need: the bytes that a row needs.
            tokens: how many it runs.
            multiple: rows come in groups of so many, if that many fit.
        """
        most = max(1, min(self.bytes // need, self.tokens // tokens))
        group = min(multiple, most)
        groups = -(-rows // group)
        even = -(-groups // -(-groups // (most // group)))  # a short last pass would be a slow one
        return min(rows, group * even)

    def shrink(self, rows: int, need: int) -> None:
        """A pass of so many rows did not fit: from now on half of them fill the budget."""
        self.bytes = rows // 2 * need

    def saw(self, rows: int) -> None:
        """A pass of so many rows was run."""
        self.rows = max(self.rows, rows)


class Portions:
    """Goes through a job's examples and joins what it finds; see the module.

    Attributes:
        budget: of the whole job.
    """

    def __init__(
        self,
        nn: Any,
        tick: Any,
        embed: str,
        total: int,
        size: int,
        *,
        need: int = 0,
        max_memory: int | None = None,
        tokens: int = TOKENS_PER_FORWARD,
    ) -> None:
        """Plan the portions.

        Args:
            nn: the nnsight model.
            tick: the job's, which reports progress.
            embed: the path of the token embedding, which tells the device and the dtype.
            total: how many examples there are.
            size: the most that a portion has.
            need: bytes that an example keeps alive, if they can be told; half of the budget is for
                these.
            max_memory: bytes to plan with; by default most of what is free.
            tokens: the most that one pass runs.
        """
        weight = nn.get(embed).weight
        self.device, self.dtype = weight.device, str(weight.dtype)
        tokens = min(tokens, CPU_TOKENS) if self.device.type == "cpu" else tokens
        free = most_of_free(self.device) if max_memory is None else max(1, max_memory)
        self.budget = Budget(free, tokens)
        self.whole_tick, self.total, self.first = tick, total, 0
        self.size = max(1, min(size, total, self.budget.bytes // 2 // need if need else total))
        self.parts: list[dict[str, Any]] = []
        self.found: dict[str, Any] | None = None
        self.refused: tuple[str, str] | None = None
        begin_peak(self.device)

    def __iter__(self) -> Iterator[slice]:
        """The portions, as slices of the examples."""
        while self.first < self.total and self.refused is None:
            last = min(self.first + self.size, self.total)
            self.size, self.found = last - self.first, None
            yield slice(self.first, last)
            if self.found is None:  # out of the handler, whose traceback kept tensors alive
                self.size //= 2
                release()
            else:
                self.parts.append(self.found)
                self.first = last

    def attempt(self) -> Portions:
        """A context for one portion: where memory runs out in it, it is tried with half of it."""
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, RefusedError):
            self.refused = error.kind, error.reason
            return True
        return error is not None and self.size > 1 and ran_out(error)

    def keep(self, values: dict[str, Any], rows: int | None = None) -> None:
        """What this portion found: tensors [example, ...], and plain values.

        ``rows`` is how many its largest pass had, by default one for each example.
        """
        self.budget.saw(self.size if rows is None else rows)
        self.found = values

    def tick(self, done: int, of: int) -> None:
        """Report the progress of this portion as progress of the whole."""
        self.whole_tick(self.first * of + done * self.size, self.total * of)

    def joined(self) -> dict[str, Any]:
        """What the job returns."""
        if self.refused is not None:
            return {"refused": self.refused}
        seen = {"rows": self.budget.rows, "peak": peak(self.device)}
        return {"dtype": self.dtype, **concatenated(self.parts), **seen}


def concatenated(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors joined over portions, on the CPU.

    Plain values are those of a portion that fell back, else of the last one.
    """
    joined: dict[str, Any] = {}
    said = next((part for part in parts if part.get("fell_back")), parts[-1])
    for name, value in said.items():
        tensors = [part[name] for part in parts]
        joined[name] = torch.cat(tensors).cpu() if isinstance(value, Tensor) else value
    return joined


def most_of_free(device: torch.device) -> int:
    """The bytes to plan with where nobody says how many: most of what is free on the device."""
    free = None
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    elif device.type == "cpu":
        free = free_here()
    return int(MARGIN * free) if free is not None else UNKNOWN


def free_here() -> int | None:
    """The bytes that a process on this Linux machine, or in its container, can still have."""
    known = [1024 * value for value in (proc("/proc/meminfo", "MemAvailable:"),) if value]
    group = "/sys/fs/cgroup/memory"
    limit, used = (proc(f"{group}.{name}", "") for name in ("max", "current"))
    if limit is not None and used is not None:
        known.append(max(0, limit - used))
    return min(known) if known else None


def proc(path: str, label: str) -> int | None:
    """The number after a label in a file of the kernel; None where there is none."""
    try:
        with open(path, encoding="ascii") as file:
            lines = [line for line in file if line.startswith(label)]
        return int(lines[0].removeprefix(label).split()[0])
    except (OSError, ValueError, IndexError):
        return None


def begin_peak(device: torch.device) -> None:
    """Begin to measure the peak of memory anew, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:  # the peak is then that of the process since it began
        return


def peak(device: torch.device) -> int:
    """The most bytes that were in use at once: on the device, or by this process, weights and all.

    0 where nobody can say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * (proc("/proc/self/status", "VmHWM:") or 0) if device.type == "cpu" else 0


def ran_out(error: BaseException) -> bool:
    """Whether a failure says that memory ran out."""
    said = f"{type(error).__name__} {error}".lower()
    return "outofmemory" in said or "memoryerror" in said or any(mark in said for mark in RAN_OUT)


def release() -> None:
    """Give back what a failed pass held."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
