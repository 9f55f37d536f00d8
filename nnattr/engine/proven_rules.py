"""That rules act on the model at hand: shown on one example before anything is estimated with them.

At every module of a rule, in one run under all of them:

- the value is the model's own;
- the run goes on from what took its place: a gradient arrives there, and none at what was replaced;
- what the rule gives on of that gradient is what its closed form says, and somewhere it is not what
  the module itself gives on;
- for products, what enters the projection really is an activation times what another linear module
  made, entry by entry.

A rule that fails is refused by its name: an estimate would carry the name of a rule that did
nothing. Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.rules import Column, Placed, needs_patterns, pulled, ruled
from nnattr.runs.edits import further
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.interface import call_in
from nnattr.runs.patterns import go_back, go_eager
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import attention_tolerance, same_logits

#: What may be done where a rule is refused.
INSTEAD = "choose others with rules=(...), or use activation_patching"


class Shown:
    """What one run shows of a rule at one module.

    Attributes:
        path: the module.
        value: how far the value is off the model's own.
        closed: how far the gradient is off its closed form.
        own: how far it is off that of the module itself.
        used: whether the run goes on from what took the place of the module's value.
    """

    def __init__(self, path: str, value: float, closed: float, own: float, used: bool) -> None:
        self.path = path
        self.value = value
        self.closed = closed
        self.own = own
        self.used = used


def require_proven(nn: Any, embed: str, prompts: PromptBatch, columns: list[Column]) -> None:
    """Refuse a rule that does not act on this model as it says, by its name.

    Args:
        nn: the nnsight model.
        embed: the path of the token embedding.
        prompts: one example.
        columns: the rules.

    Raises:
        RefusedError: a rule changes nothing, or the value, or has another gradient.
    """
    for column in columns:
        require_call(nn, column)
        require_products(nn, prompts, column)
    shown, logits, dtype = look(nn, embed, prompts, columns)
    limit = attention_tolerance(dtype)
    for column, found in zip(columns, shown, strict=True):
        for one in found:
            if not one.used:
                raise refused(column, f"the model does not go on from what replaces {one.path}")
            if not max(one.value, one.closed) <= limit:
                said = f"its value is off by {one.value:.1e} and its gradient by {one.closed:.1e}"
                raise refused(column, f"it does not fit {one.path}: {said}")
        if not any(one.own > limit for one in found):
            raise refused(column, "it changes no gradient of this model")
    require_logits(nn, prompts, columns, logits)


def refused(column: Column, why: str) -> RefusedError:
    """The refusal of a rule."""
    return RefusedError("arch", f"the rule {column.rule!r} cannot be used: {why}; {INSTEAD}.")


def require_call(nn: Any, column: Column) -> None:
    """Refuse a rule inside attention that does not call transformers' interface."""
    for path in column.paths if needs_patterns([column]) else []:
        if call_in(nn, path) is None:
            said = "does not hand its queries and keys to transformers' attention interface"
            raise refused(column, f"{path} {said}")


def look(
    nn: Any, embed: str, prompts: PromptBatch, columns: list[Column]
) -> tuple[list[list[Shown]], Tensor, torch.dtype]:
    """What one run shows of each column, its last logits, and the dtype of the residual stream."""
    seen: list[list[Placed]] = [[] for _ in columns]
    for column, placed in zip(columns, seen, strict=True):
        nn = ruled(nn, [column], placed)
    before = go_eager(nn) if needs_patterns(columns) else []
    try:
        with nn.trace(**inputs(prompts)):
            entered = nn.get(embed).output
            entered.requires_grad_(True)
            logits = nn.output.logits[:, -1]
            weights = torch.arange(1, logits.shape[-1] + 1, device=logits.device).sin()
            probe = (logits.float() * weights).sum()
            shown = [
                [shown_at(probe, column, one) for one in placed]
                for column, placed in zip(columns, seen, strict=True)
            ]
    finally:
        go_back(before)
    return shown, logits.detach(), entered.dtype


def shown_at(probe: Tensor, column: Column, one: Placed) -> Shown:
    """What a run whose number ``probe`` can be differentiated shows of a rule at one module."""
    cut_off = column.how != "scaled"  # else what took its place is made of the value itself
    asked = [one.new, one.own] if cut_off else [one.new]
    arriving, *around = torch.autograd.grad(probe, asked, retain_graph=True, allow_unused=True)
    value = off(one.new.detach(), one.own.detach())
    if arriving is None or any(other is not None for other in around):
        return Shown(one.path, value, 0.0, 0.0, False)
    # what arrives may be nothing at most positions, so another is sent on: a part of it along the
    # value, which a norm's own gradient lacks
    cotangent = torch.arange(1, arriving.numel() + 1, device=arriving.device).sin()
    whole = one.own.detach().float()
    cotangent = (cotangent.view(whole.shape) + whole / whole.abs().max()).to(arriving.dtype)
    ours = gradients(one.new, one.given, cotangent)
    theirs = gradients(one.own, one.given, cotangent)
    expected = pulled(column, one, cotangent)
    closed = max(map(off, ours, expected))
    return Shown(one.path, value, closed, max(map(off, ours, theirs)), True)


def gradients(made: Tensor, given: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """The gradients of what was given, zeros where none arrives."""
    found = torch.autograd.grad(made, given, cotangent, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(value) if slope is None else slope
        for slope, value in zip(found, given, strict=True)
    ]


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest value."""
    size = expected.detach().float().abs().max().clamp(min=1e-30)
    return float((found.detach().float() - expected.detach().float()).abs().max() / size)


def require_logits(nn: Any, prompts: PromptBatch, columns: list[Column], logits: Tensor) -> None:
    """Refuse rules under which the model, or the attention they need, says something else."""
    with nn.trace(**inputs(prompts)):
        with torch.no_grad():
            plain = nn.output.logits[:, -1]
    if not same_logits(logits, plain):
        names = ", ".join(dict.fromkeys(repr(column.rule) for column in columns))
        raise RefusedError("arch", f"the rules {names} change what the model predicts; {INSTEAD}.")


def require_products(nn: Any, prompts: PromptBatch, column: Column) -> None:
    """Refuse a half rule where what enters the projection is no product of two factors."""
    if not column.acts:
        return
    neurons: list[Tensor] = []
    acts: list[Tensor] = []
    linears: list[list[Tensor]] = [[] for _ in column.linears]
    watching = watched(nn, column.acts, "output", acts)
    for paths, values in zip(column.linears, linears, strict=True):
        watching = watched(watching, paths, "output", values)
    watching = watched(watching, column.paths, "input", neurons)
    with watching.trace(**inputs(prompts)):
        with torch.no_grad():
            dtype = watching.output.logits.dtype
    for path, made, act, *others in zip(column.paths, neurons, acts, *linears, strict=True):
        width = made.shape[-1]
        factors = [part for other in others for part in other.split(width, -1)]
        gaps = [off(act * one, made) for one in factors if one.shape == made.shape]
        if not gaps or min(gaps) > attention_tolerance(dtype):
            said = "is not an activation times what one linear module made"
            raise refused(column, f"what enters {path} {said}")


def watched(nn: Any, paths: list[str], side: str, values: list[Tensor]) -> Any:
    """The nnsight model whose every run leaves these values in a list."""
    with nn.edit() as (_, found):
        for path in paths:
            module = nn.get(path)
            value = module.input if side == "input" else module.output
            values.append(value.detach().clone())
    return further(nn, found)
