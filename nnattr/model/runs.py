"""Forward runs inside a job: plain functions that travel to a server.

A method's payload is cut into *asks*, portions of examples that are worked on together (see
`nnattr.model.memory`). A run covers the positions from ``start`` on: everything before it enters as
a cache of keys and values (see `nnattr.model.caches`).
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.sites import read

#: Tokens in one forward pass, unless a single example already has more.
TOKENS_PER_FORWARD = 4096
#: In the tanh form of GELU, ``x / 2 * (1 + tanh(u))``, 2 u is so many times x + 0.044715 x^3.
TWICE = 2 * (2 / math.pi) ** 0.5


def gather(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts' tensors as one, on the CPU; the rest of one that fell back, or of the last."""
    joined: dict[str, Any] = {}
    said = next((part for part in parts if part.get("fell_back")), parts[-1])
    for name, value in said.items():
        tensors = [part[name] for part in parts]
        joined[name] = torch.cat(tensors).cpu() if isinstance(value, Tensor) else value
    return joined


def shared(ask: SimpleNamespace) -> int:
    """The first position at which some example's runs differ (the last one, if none do)."""
    if ask.filled is not None:
        return 0
    differing = (ask.base["ids"] != ask.source["ids"]).int()
    last = differing.shape[1] - 1
    return int(torch.where(differing.any(1), differing.argmax(1), last).min())


def inputs(
    ask: SimpleNamespace,
    prompts: dict[str, Tensor],
    start: int = 0,
    cache: Any = None,
    stop: int | None = None,
) -> dict[str, Any]:
    """The model's inputs for the tokens from ``start`` to ``stop``; a mask only with padding.

    With a cache the mask covers what is cached as well, and positions, which a model would count
    from the cache, are counted from each prompt's own first token.
    """
    mask = prompts["mask"][:, :stop]
    given: dict[str, Any] = {"input_ids": prompts["ids"][:, start:stop], **ask.options}
    if not mask.all():
        given["attention_mask"] = mask.long()
        if cache is not None and ask.takes_positions:
            given["position_ids"] = counted(mask)[:, start:]
    if cache is not None:
        given["past_key_values"] = cache
    else:
        given["use_cache"] = False
    return given


def counted(mask: Tensor) -> Tensor:
    """Positions counted from each prompt's own first token [example, pos]."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def lasting(room: dict[Any, Tensor], name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory of this shape for all layers of a pass: fresh memory costs more than its use."""
    alike, size = (name, like.dtype, like.device), math.prod(shape)
    if alike not in room or len(room[alike]) < size:
        room[alike] = like.new_empty(size)
    return room[alike][:size].view(shape)


def one_step(nn: Any, path: str, room: dict[Any, Tensor]) -> None:
    """Compute a tanh GELU that a module writes out in eight steps in one, inside a trace.

    In float32 on a processor as ``x * sigmoid(2 u)``, which takes half of torch's own.
    """
    module = nn.get(path)
    x = module.input
    if x.device.type == "cpu" and x.dtype == torch.float32:
        u = lasting(room, "gelu", x, x.shape)
        torch.addcmul(x.new_tensor(TWICE), x, x, value=TWICE * 0.044715, out=u)
        module.skip(u.mul_(x).sigmoid_().mul_(x))
    else:
        module.skip(torch.nn.functional.gelu(x, approximate="tanh"))


def same(found: Tensor, whole: Tensor) -> bool:
    """Whether logits are those of a whole pass, to what their precision allows."""
    gap = (found.float() - whole.float()).abs().max()
    return bool(gap <= closeness(whole) * whole.abs().max())


def closeness(value: Tensor) -> float:
    """How far apart two ways to compute such a value may be, as a share of the largest."""
    return 1e-4 if torch.finfo(value.dtype).eps < 1e-6 else 0.1


def observe(
    nn: Any,
    ask: SimpleNamespace,
    prompts: dict[str, Tensor],
    names: tuple[str, ...],
    start: int = 0,
    cache: Any = None,
) -> tuple[dict[str, Any], Tensor]:
    """One run from ``start`` on, without gradients: what is found at ``names``, and the logits.

    ``ask.reads`` holds for each layer the names and places that may be asked for, in forward order.
    Three names are not of places: ``"cache"`` asks for the run's keys and values, ``"gelu"`` for
    GELUs in one step, ``"arity"`` for how attention modules and layers return (a tuple of that
    many, or 0 for a bare tensor).
    """
    found: dict[str, Any] = {name: [] for name in names}
    room: dict[Any, Tensor] = {}
    width = prompts["ids"].shape[1] - start
    given = inputs(ask, prompts, start, cache)
    if "cache" in names:
        given["use_cache"] = True
    with nn.trace(**given):
        with torch.no_grad():
            for places in ask.reads:
                for name, where in places:
                    if name not in names:
                        continue
                    if name == "gelu":
                        one_step(nn, where, room)
                    elif name == "arity":
                        value = nn.get(where).output
                        found[name].append(len(value) if isinstance(value, tuple) else 0)
                    else:
                        # a copy: the model may go on to add into what was read
                        found[name].append(read(nn, where, width).clone())
            logits = logits_of(nn, ask)
            if "cache" in names:
                found["cache"] = nn.output.past_key_values
    return found, logits


def logits_of(nn: Any, ask: SimpleNamespace, whole: bool = False) -> Tensor:
    """The logits, at the end of a trace: of the tokens that the metric reads, if it names them.

    Of the unembedding only their rows are used, unless ``whole`` asks for all of it or a sandbox
    holds the weights.
    """
    wanted, head = ask.wanted, nn.get(ask.unembed)
    here = not head.weight.is_meta
    if here:
        head.input = head.input.contiguous()  # a strided one would be multiplied row by row
    if wanted is None or whole or not here:
        logits = nn.output.logits
        return logits if wanted is None else logits[..., wanted.to(logits.device)]
    rows = wanted.to(head.weight.device)
    bias = getattr(head._module, "bias", None)
    bias = None if bias is None else bias[rows]
    head.skip(torch.nn.functional.linear(head.input, head.weight[rows], bias))
    return nn.output.logits


def measure(
    ask: SimpleNamespace,
    prompts: dict[str, Tensor],
    logits: Tensor,
    clean: Tensor,
    example: Tensor | None = None,
) -> Tensor:
    """The metric of each row; row *i* belongs to ``example[i]``, or to example *i*.

    ``clean`` are the clean run's logits at the last position [example, d_vocab].
    """
    fields = {name: value.to(logits.device) for name, value in {**ask.answers, **prompts}.items()}
    fields["clean_logits"] = clean.to(logits.device)
    if example is not None:
        rows = example.to(logits.device)
        fields = {name: value[rows] for name, value in fields.items()}
    return ask.metric(logits, SimpleNamespace(**fields))


def refusal(value: Any, n: int) -> dict[str, Any] | None:
    """What a job returns when the metric is not one number per example; None when it is."""
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if shape == (n,):
        return None
    return {"refused": ("metric", f"expected one number for each of {n} examples, got {shape}")}
