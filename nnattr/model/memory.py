"""What fits into memory: portions of examples, rows of a pass, and what happens when it does not.

An estimate of what an example keeps alive and of what a row needs while it runs, from the sizes of
the model's parts and of the tensors at hand, is held against ``max_memory``, or against most of
what is free where the job runs. Where memory runs out nevertheless, half as much is tried, and that
is remembered for the rest of the job. Nothing is kept from one portion to the next but its scores.

====================  ===========================================================================
kept for an example   the base run's residual streams, what attention returned, both runs' site;
                      keys and values of every layer; logits
needed by a row       the activations of one layer for its tokens, their attention scores; one
                      layer's keys and values; the site as it was and patched; logits
====================  ===========================================================================

Inside a job: torch and plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.runs import gather

#: The share of what is free that is planned with.
MARGIN = 0.7
#: What is planned with where nothing says how much is free.
UNKNOWN = 2 << 30
#: Tokens of one pass on a processor: enough for its matrix units, few enough for its caches.
CPU_TOKENS = 768
#: Floats per token that a layer holds at once: so many residual streams, and widest activations.
STREAMS, WIDEST = 8, 5
#: Words by which a failure says that memory ran out.
RAN_OUT = ("out of memory", "not enough memory", "allocate memory")


def portions(nn: Any, tick: Any, payload: dict[str, Any], work: Callable[..., Any]) -> Any:
    """Work through a payload's examples in portions that fit, at least one each; join the results.

    ``work(nn, tick, ask)`` returns tensors [example, ...] and plain values for an *ask*, which is
    the payload for ``n`` of the examples. If it refuses, that is all that is returned.
    """
    if nn.get(payload["embed"]).weight.device.type == "cpu":
        payload = dict(payload, tokens=min(payload["tokens"], CPU_TOKENS))
    room = SimpleNamespace(bytes=budget(nn, payload), rows=0)
    watch(nn, payload)
    total, first = len(payload["base"]["ids"]), 0
    size = max(1, min(payload["rows"], total, room.bytes // 2 // held(payload)))
    parts: list[dict[str, Any]] = []
    while first < total:
        n = min(size, total - first)
        try:
            part = work(nn, partial(share, tick, first, n, total), portion(payload, room, first, n))
        except Exception as error:
            if n == 1 or not ran_out(error):
                raise
            part = None
        if part is None:  # out of the handler, whose traceback kept tensors alive
            size = n // 2
            release()
            continue
        if "refused" in part:
            return part
        parts.append(part)
        first += n
    return {**gather(parts), "rows": room.rows, "peak": peak(nn, payload)}


def portion(payload: dict[str, Any], room: SimpleNamespace, first: int, n: int) -> SimpleNamespace:
    """The payload for ``n`` examples from ``first`` on; ``room`` is shared by all portions."""
    part = dict(payload, n=n, room=room)
    for name in ("base", "source", "answers"):
        part[name] = {k: value[first : first + n] for k, value in payload[name].items()}
    part["spots"] = payload["spots"][:, first : first + n]
    return SimpleNamespace(**part)


def share(tick: Any, first: int, n: int, total: int, done: int, of: int) -> None:
    """Report the progress of a portion as progress of the whole."""
    tick(first * of + done * n, total * of)


def fitting(
    ask: SimpleNamespace,
    rows: Tensor,
    need: int,
    tokens: int,
    work: Callable[[Tensor], Any],
    size: int = 1,
) -> Iterator[tuple[Tensor, Any]]:
    """``work`` on as many rows at a time as fit; part by part the rows, and what came out.

    ``need`` is what a row needs in bytes, ``tokens`` what it runs; rows come in lots of ``size``.
    Where memory runs out, half as many rows are tried, and the room is what they need from then on.
    """
    while len(rows):
        most = max(1, min(ask.room.bytes // need, ask.tokens // tokens))
        lot = min(size, most)
        lots = -(-len(rows) // lot)
        even = -(-lots // -(-lots // (most // lot)))  # a short last pass would be a slow one
        n = min(len(rows), lot * even)
        try:
            value = work(rows[:n])
        except Exception as error:
            if n == 1 or not ran_out(error):
                raise
            value = None
        if value is None:
            ask.room.bytes = n // 2 * need
            release()
            continue
        ask.room.rows = max(ask.room.rows, n)
        yield rows[:n], value
        rows = rows[n:]


def held(payload: dict[str, Any]) -> int:
    """The bytes that an example keeps alive, or needs while the plain runs are made."""
    width, sizes = payload["base"]["ids"].shape[1], payload["sizes"]
    layers, asked = len(payload["reads"]), len(payload["layers"])
    kept = (2 * layers + 1) * sizes["stream"] + 3 * asked * sizes["site"]
    kept += 2 * 2 * layers * sizes["keys"]  # of the whole run, and a copy that goes on
    kept += STREAMS * sizes["stream"] + WIDEST * sizes["widest"]  # while a plain run is made
    if payload["backward"]:
        kept += layers * (STREAMS * sizes["stream"] + WIDEST * sizes["widest"])
    scores = width * sizes["heads"] * (1 + 2 * asked * bool(payload["patterns"]))
    return 4 * width * (kept + 2 * scores) + 4 * 6 * logits(payload)


def needed(ask: SimpleNamespace, start: int, kept: int, size: int = 1) -> int:
    """The bytes that a row needs while it runs from ``start`` on, one of ``size`` in its sequence.

    ``kept`` is where runs begin.
    """
    width, sizes = ask.base["ids"].shape[1], ask.sizes
    tokens = width - start
    floats = tokens * (STREAMS * sizes["stream"] + WIDEST * sizes["widest"])
    floats += (width - kept) * 6 * sizes["site"]
    floats += 4 * (start // size + tokens) * sizes["keys"]
    floats += 3 * tokens * (start + size * tokens) * sizes["heads"]
    return 4 * (floats + 6 * logits(vars(ask)))


def logits(payload: dict[str, Any]) -> int:
    """How many logits a row has."""
    words = payload["sizes"]["vocab"] if payload["wanted"] is None else len(payload["wanted"])
    return words * (1 if payload["last_only"] else payload["base"]["ids"].shape[1])


def budget(nn: Any, payload: dict[str, Any]) -> int:
    """The bytes to plan with: what was asked for, or most of what is free where the job runs."""
    if payload["max_memory"] is not None:
        return max(1, payload["max_memory"])
    device = nn.get(payload["embed"]).weight.device
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


def watch(nn: Any, payload: dict[str, Any]) -> None:
    """Begin to measure the peak of memory anew, where that can be done."""
    device = nn.get(payload["embed"]).weight.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:  # the peak is then that of the process since it began
        return


def peak(nn: Any, payload: dict[str, Any]) -> int:
    """The most bytes that were in use at once: on the device, or by this process, weights and all.

    0 where nobody can say.
    """
    device = nn.get(payload["embed"]).weight.device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * (proc("/proc/self/status", "VmHWM:") or 0) if device.type == "cpu" else 0


def ran_out(error: Exception) -> bool:
    """Whether a failure says that memory ran out."""
    said = f"{type(error).__name__} {error}".lower()
    return "outofmemory" in said or "memoryerror" in said or any(mark in said for mark in RAN_OUT)


def release() -> None:
    """Give back what a failed pass held."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
