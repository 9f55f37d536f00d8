"""Every cell of a site to first order: two plain runs and one backward pass.

Only the positions from the first one at which the runs differ are differentiated: before it there
is no difference to multiply a gradient with. The source run has a pass of its own: in one batch
with the base run the backward pass would go through its rows as well, for nothing.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import SITE, first_difference, observe
from nnattr.engine.cache import fork, inputs_from, prefix
from nnattr.engine.measure import measure, measured, require_own_numbers
from nnattr.engine.memory import portions_for
from nnattr.engine.mode import reason
from nnattr.engine.pattern_patch import patched_by_patterns
from nnattr.engine.question import Question, every_example, question_of, sandboxed
from nnattr.engine.shortcuts import read_logits
from nnattr.runs.as_built import touched
from nnattr.runs.places import cut, raw, read
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import same_logits

#: Shared tokens below which a cache of them costs more passes than it saves.
WORTH_SHARING = 256
#: Why runs begin at the first token though they share more than that.
DISAGREES = "an example's logits are others when it goes on from its keys and values"


def attribution_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Both baselines and the estimated change for every cell."""
    question = question_of(nn, payload)
    portions = portions_for(nn, tick, payload, question, backward=True)
    for some in portions:
        with portions.attempt():
            portions.keep(attribute(nn, question.take(some)))
            portions.tick(1, 1)
    return portions.joined()


class Differentiated:
    """The base run with its gradients, from ``start`` on.

    Attributes:
        start: the position at which both runs begin.
        because: why that is the first one, though it would pay to begin later.
        own: the site in the base run, by layer [example, pos, width].
        other: the site in the source run, by layer [example, pos, width].
        slopes: the gradient of the metric there, by layer [example, pos, width].
        metric, source_metric: of both runs [example].
        dtype: of the logits.
    """

    def __init__(
        self,
        *,
        start: int,
        because: str,
        own: dict[int, Tensor],
        other: dict[int, Tensor],
        slopes: dict[int, Tensor],
        metric: Tensor,
        source_metric: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.start = start
        self.because = because
        self.own = own
        self.other = other
        self.slopes = slopes
        self.metric = metric
        self.source_metric = source_metric
        self.dtype = dtype


def attribute(nn: Any, question: Question) -> dict[str, Any]:
    """Both baselines and the estimated change for every cell of a portion of the examples."""
    run = differentiated(nn, question)
    spots = question.spots[:, :, run.start :]
    change = [
        contribution(slope, run.other[layer], run.own[layer], spots, question.units).cpu()
        for layer, slope in run.slopes.items()
    ]
    return {
        "change": torch.stack(change, 1),
        "base": run.metric,
        "source": run.source_metric,
        "engine": "suffix" if run.start else "full",
        "fell_back": run.because,
        "dtype": str(run.dtype),
    }


def differentiated(nn: Any, question: Question) -> Differentiated:
    """Both runs, and the gradients of the base run's metric."""
    layout = question.layout
    start, because = resumable(nn, question)
    cache, before = prefix(nn, question, start)
    every = every_example(question)
    theirs = observe(nn, question, question.source, SITE, start, fork(cache, every))
    source_logits = theirs.logits
    require_passed_back(nn, layout.embed)
    with nn.trace(**inputs_from(layout, question.base, start, fork(cache, every))):
        nn.get(layout.embed).output.requires_grad_(True)  # opens the graph: the weights are frozen
        # of a part of an output there is no gradient: take it of the whole, and cut
        width = question.base.width - start
        places = [layout.places[layer] for layer in question.layers]
        live, versions = [], []
        for path, side, _ in places:
            live.append(read(nn, (path, side, None), width))
            versions.append(live[-1]._version)
        parts = [part for *_, part in places]
        own = [cut(value.detach(), part).clone() for value, part in zip(live, parts, strict=True)]
        logits = read_logits(nn, question)
        written = [value._version for value in live] != versions
        # a sandbox, which has no weights, gives copies that lead nowhere
        tracked = logits.grad_fn is not None and not sandboxed(nn, layout)
        if before is not None:
            logits = torch.cat([before, logits], 1)
            source_logits = torch.cat([before, source_logits], 1)
        clean = (logits.detach() if question.base_is_clean else source_logits)[:, -1]
        metric, problem = measured(question, question.base, logits, clean)
        slopes = ()
        if tracked and metric.requires_grad and not problem:
            slopes = torch.autograd.grad(metric.sum(), live)
    if written and touched(nn, layout.layers) is not None:
        raise RefusedError(
            "arch",
            "somebody's hook writes into an activation that is differentiated (x.mul_(2), say), "
            "and the gradient would be that of what it becomes. Let the hook return a new tensor, "
            "or use activation_patching.",
        )
    if problem:
        raise RefusedError("metric", problem)
    require_own_numbers(question, logits, clean, metric)
    require_gradients(tracked, slopes)
    by_layer = dict(zip(question.layers, own, strict=True))
    other = dict(zip(question.layers, theirs.site, strict=True))
    if layout.pattern_paths:
        other = patched_by_patterns(nn, question, by_layer, start)
    slopes = [cut(slope, part) for slope, part in zip(slopes, parts, strict=True)]
    return Differentiated(
        start=start,
        because=because,
        own=by_layer,
        other=other,
        slopes=dict(zip(question.layers, slopes, strict=True)),
        metric=metric.detach(),
        source_metric=measure(question, question.source, source_logits, clean),
        dtype=logits.dtype,
    )


def require_passed_back(nn: Any, embed: str) -> None:
    """Refuse a linear module that passes no gradient on: the residual stream goes round it.

    Kernels of quantized weights often do not, and the estimate would silently lack that path.
    """
    like = nn.get(embed).weight
    for path, part in raw(nn).named_modules():
        width = getattr(part, "in_features", None)
        usual = type(part) is torch.nn.Linear and type(part.weight) in (Tensor, torch.nn.Parameter)
        if width is None or usual or like.is_meta or _reads_tokens(part):
            continue
        probe = torch.zeros(1, width, dtype=like.dtype, device=like.device, requires_grad=True)
        if not passes_back(part, probe):
            raise RefusedError(
                "arch",
                f"{path} ({type(part).__name__}) passes no gradients back, as kernels of quantized "
                "weights often do not; use activation_patching, which needs none.",
            )


def _reads_tokens(part: Any) -> bool:
    """Whether it is an embedding, perhaps inside an adapter that counts its tokens as features."""
    return any(isinstance(inside, torch.nn.Embedding) for inside in part.modules())


def passes_back(part: Any, probe: Tensor) -> bool:
    """Whether a gradient reaches what the module is given; some kernels only say that it does."""
    made = part(probe).sum()
    if not made.requires_grad:
        return False
    return torch.autograd.grad(made, probe, allow_unused=True)[0] is not None


def require_gradients(tracked: bool, slopes: tuple[Tensor, ...]) -> None:
    """Refuse where the logits, or the metric, lead nowhere back."""
    instead = "use activation_patching, which needs none"
    if not tracked:
        raise RefusedError("backend", f"this deployment gives no gradients; {instead}")
    if not slopes:
        raise RefusedError("metric", f"it has no gradient; {instead}")


def resumable(nn: Any, question: Question) -> tuple[int, str]:
    """Where runs may begin: after what all pairs share, if that pays and the model allows it.

    It does where one example gives the same logits when it goes on from a cache; else this is 0,
    with the reason.
    """
    start = first_difference(question)
    if len(question) * start < WORTH_SHARING:
        return 0, ""
    one = question.take(slice(1))
    whole = observe(nn, one, one.base).logits
    try:
        cache, _ = prefix(nn, one, start)
        resumed = observe(nn, one, one.base, (), start, cache).logits
    except Exception as error:  # whatever the model's own code has against a cache
        return 0, reason(error)
    return (start, "") if same_logits(resumed[:, -1], whole[:, -1]) else (0, DISAGREES)


def contribution(slope: Tensor, other: Tensor, own: Tensor, spots: Tensor, units: int) -> Tensor:
    """First-order change [example, unit, spot] of one layer, in float32."""
    moved = (slope.float() * (other.float() - own.float())).unflatten(-1, (units, -1)).sum(-1)
    where = spots.to(moved.device).float()
    return (moved[None] * where[..., None]).sum(2).permute(1, 2, 0)
