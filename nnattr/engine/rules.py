r"""Rules of the backward pass: the same values, and another gradient, at the modules' boundaries.

What a norm, an activation or a projection returns is replaced by an expression of the same value
whose gradient is the rule's. Nothing of the model's code is touched, any attention kernel runs on,
and values stay the same to the bit: with :math:`\bar x` for *x* without its gradient, an expression
*e* takes the place of a value *y* as :math:`\bar y + e - \bar e`.

============== ============================================ ====================================
rule           where                                        the gradient is that of
============== ============================================ ====================================
``norms``      what a norm returns                          the norm with its scale held
``activations`` what an activation returns                  :math:`x \cdot \overline{act(x) / x}`
``products``   what enters an MLP's output projection, if   half of it: each factor of the product
               that is gate times up                        has half of its gradient
``attention``  z, and q and k as projected                  half of each: v has 1/2, q and k 1/4
``softmax``    what attention returns                       a softmax of scores / temperature,
                                                            without the factor 1 / temperature
``patterns``   what attention returns                       values alone: the pattern is held
============== ============================================ ====================================

A rule acts in every trace of the model that `ruled` returns, as an edit does (`nnattr.runs.edits`).
(Ancona et al. 2019 for the half rule; Achtibat et al. 2024, arXiv:2402.05602; RelP, Jafari et al.
2025; GIM, Edin et al. 2025.)

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.norm import apply, frozen, transpose
from nnattr.runs.edits import further
from nnattr.runs.interface import Handed, with_sinks


class Column:
    """A rule at one kind of module, in all layers that have it.

    Attributes:
        rule: its name.
        how: which expression: a key of `HOW`.
        paths: the modules, in forward order.
        side: for ``"scaled"``, which side of the module: ``"input"`` or ``"output"``.
        factor: for ``"scaled"`` what the gradient is multiplied with, a number or one for each
            entry [width]; for ``"softened"`` the temperature.
        acts, linears: for products the paths, layer by layer, of the activations and of the linear
            modules that may be the other factor, which `nnattr.engine.proven_rules` looks at.
    """

    def __init__(
        self,
        *,
        rule: str,
        how: str,
        paths: list[str],
        side: str = "output",
        factor: Any = 1.0,
        acts: list[str] | None = None,
        linears: list[list[str]] | None = None,
    ) -> None:
        self.rule = rule
        self.how = how
        self.paths = paths
        self.side = side
        self.factor = factor
        self.acts = acts or []
        self.linears = linears or []


class Placed:
    """One rule at one module in a run.

    Attributes:
        path: the module.
        given: what the rule's gradient goes to.
        own: the value that the model made.
        new: what took its place.
        known: what the closed form of its gradient needs (see `pulled`).
    """

    def __init__(
        self, path: str, given: list[Tensor], own: Tensor, new: Tensor, known: Any
    ) -> None:
        self.path = path
        self.given = given
        self.own = own
        self.new = new
        self.known = known


def ruled(nn: Any, columns: list[Column], seen: list[Any] | None = None) -> Any:
    """The nnsight model whose gradients follow these rules; `Placed` values go to ``seen``."""
    for column in columns:
        nn = under(nn, column, seen)
    return nn


def under(nn: Any, column: Column, seen: list[Any] | None) -> Any:
    """The same for one column: an edit of its own, so that modules may come in any order."""
    with nn.edit() as (_, found):
        for path in column.paths:
            placed = HOW[column.how](nn.get(path), path, column)
            if seen is not None:
                seen.append(placed)
    return further(nn, found)


def of_value(own: Tensor, other: Tensor) -> Tensor:
    """The value of the first, with the gradient of the second alone."""
    return own.detach() + (other - other.detach()).to(own.dtype)


def hold_norm(module: Any, path: str, _: Column) -> Placed:
    """A norm with its scale held."""
    x, own = module.input, module.output
    with torch.no_grad():
        norm = frozen(module, x.detach())
    new = of_value(own, apply(norm, x.float()))
    module.output = new
    return Placed(path, [x], own, new, norm)


def hold_slope(module: Any, path: str, _: Column) -> Placed:
    """An activation as its input times a number: that which it has at this input."""
    x, own = module.input, module.output
    ratio = (own / torch.where(x == 0, torch.ones_like(x), x)).detach()
    new = of_value(own, ratio * x)
    module.output = new
    return Placed(path, [x], own, new, ratio)


def scale(module: Any, path: str, column: Column) -> Placed:
    """A value whose gradient is multiplied by a factor."""
    own = module.input if column.side == "input" else module.output
    factor = column.factor
    factor = factor.to(own) if isinstance(factor, Tensor) else factor
    new = of_value(own, factor * own)
    if column.side == "input":
        module.input = new
    else:
        module.output = new
    return Placed(path, [own], own, new, factor)


def soften(module: Any, path: str, column: Column) -> Placed:
    """Attention whose softmax has the gradient of a softer one."""
    handed, call, returned = handed_by(module)
    soft = softer(handed, column.factor)
    pattern = handed.pattern().detach() + column.factor * (soft - soft.detach())
    return attend(path, handed, pattern, call, returned)


def softer(handed: Handed, temperature: float) -> Tensor:
    """The softmax of scores, and of sinks beside them, divided by a temperature."""
    sinks = None if handed.sinks is None else handed.sinks / temperature
    return with_sinks(handed.scores() / temperature, sinks)


def hold_pattern(module: Any, path: str, _: Column) -> Placed:
    """Attention as a fixed mixture of values."""
    handed, call, returned = handed_by(module)
    return attend(path, handed, handed.pattern().detach(), call, returned)


def handed_by(module: Any) -> tuple[Handed, Any, Any]:
    """What a module hands to the attention interface, that call, and what it returns."""
    call = module.source.attention_interface_1
    return Handed(*call.inputs), call, call.output


def attend(path: str, handed: Handed, pattern: Tensor, call: Any, returned: Any) -> Placed:
    """Let attention return the mixture of values by ``pattern``, at the value that it has."""
    own = returned[0]  # [example, pos, head, d_head]
    made = (pattern @ handed.shared(handed.v)).transpose(1, 2)
    new = of_value(own, made)
    call.output = (new, *returned[1:])
    return Placed(path, [handed.q, handed.k, handed.v], own, new, handed)


#: The expressions by name.
HOW = {
    "held": hold_norm,
    "identity": hold_slope,
    "scaled": scale,
    "softened": soften,
    "detached": hold_pattern,
}


def needs_patterns(columns: list[Column]) -> bool:
    """Whether a rule acts inside attention, of which the plain implementation is then run."""
    return any(column.how in ("softened", "detached") for column in columns)


def pulled(column: Column, placed: Placed, cotangent: Tensor) -> list[Tensor]:
    """What the rule's gradient must be, by its closed form, for a gradient of what it returns."""
    known = placed.known
    if column.how == "held":
        return [transpose(known, cotangent.float())]
    if column.how in ("identity", "scaled"):
        return [known * cotangent]
    return through_attention(known, column, cotangent)


def through_attention(handed: Handed, column: Column, cotangent: Tensor) -> list[Tensor]:
    """The gradients of q, k and v that a gradient of what attention returns becomes."""
    upward = cotangent.float().transpose(1, 2)  # [example, head, pos, d_head]
    values = handed.pattern().mT @ upward
    if column.how == "detached":
        none = torch.zeros(1, device=values.device)
        return [none.expand_as(handed.q), none.expand_as(handed.k), grouped(values, handed.k)]
    soft = softer(handed, column.factor)
    slope = upward @ handed.shared(handed.v).mT
    slope = soft * (slope - (soft * slope).sum(-1, keepdim=True)) * handed.scaling
    if handed.softcap is not None:
        raw = handed.q.float() @ handed.shared(handed.k).mT * handed.scaling
        slope = slope * (1 - torch.tanh(raw / handed.softcap) ** 2)
    keys = grouped(slope.mT @ handed.q.float(), handed.k)
    return [slope @ handed.shared(handed.k), keys, grouped(values, handed.k)]


def grouped(value: Tensor, like: Tensor) -> Tensor:
    """A gradient by head [example, head, pos, d_head] summed over the heads that share keys."""
    return value.unflatten(1, (like.shape[1], -1)).sum(2)
